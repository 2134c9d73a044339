"""A book whose run, or one of whose workers, is ended from outside: nothing stays, and nothing half-made counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from kdcdiff.book import runner
from kdcdiff.book.staging import is_current
from kdcdiff.book.toc import Book
from kdcdiff.errors import UserError
from kdcdiff.experiments import parallel

from ..conftest import REPO
from .road import killed_stage, number_stage

WAITS = "import os, pathlib, time; pathlib.Path('../kernel').write_text(str(os.getpid())); time.sleep(120)"


def until(what, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(what())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_ended_leaves_no_kernel_and_nothing_that_counts_as_run(small_book, number, code):
    root: Path = small_book({"01-a": [WAITS]}, light=True)
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdcdiff", "run", "--root", str(root), "--profile", "smoke"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        mark = root / "kernel"
        assert until(lambda: mark.exists() and mark.read_text()), run.poll()
        kernel = int(mark.read_text())
        run.send_signal(number)
        assert run.stderr is not None
        said = run.stderr.read()
    assert run.returncode == code
    assert "Traceback" not in said and ("interrupted" in said) == (number == signal.SIGTERM)
    assert until(lambda: not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE)
    book = Book(root)
    assert not is_current(book, book.chapters()[0])
    assert not list(root.glob("_build/.*")) and not list(root.glob("_build/staged/notebooks/.*"))


GOES_ON = "import os, pathlib, time; pathlib.Path('../kernel').write_text(str(os.getpid()))\n"
GOES_ON += "while not pathlib.Path('../go').exists(): time.sleep(0.05)"


def test_a_kernel_that_is_killed_fails_its_chapter_and_the_next_run_makes_it(small_book):
    root: Path = small_book({"01-a": [GOES_ON, "print('shown')"]}, light=True)
    mark = root / "kernel"

    def kill() -> None:
        assert until(lambda: mark.exists() and mark.read_text())
        os.kill(int(mark.read_text()), signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill)
        with pytest.raises(runner.ChapterFailed, match="01-a.ipynb, cell 4: the kernel died"):
            runner.run(root, profile="smoke")
        killer.result(60)
    book = Book(root)
    (chapter,) = book.chapters()
    assert not is_current(book, chapter)
    (root / "go").touch()
    assert runner.run(root, profile="smoke") == ["a"] and is_current(book, chapter)
    assert not psutil.pid_exists(int(mark.read_text())), "and no kernel stays"


@pytest.mark.slow
def test_a_worker_of_a_pool_that_the_system_kills(opened):
    """Two real workers: what the other had finished is kept, and the next run makes the rest."""
    run, calls = opened(processes=2), [((0,), {}), ((1,), {})]
    with pytest.raises(UserError, match="processes=2: a worker was killed"):
        parallel.run_stages(killed_stage, run, calls)
    assert len(list(run.store.root.glob("number-*/manifest.json"))) == 1
    parallel.run_stages(number_stage, run, calls)
    assert len(list(run.store.root.glob("number-*/manifest.json"))) == 2
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_worker_that_is_killed_is_one_line(opened, monkeypatch):
    class Killed(parallel.ProcessPoolExecutor):
        """A pool that lost a worker, as the system reports it."""

        def submit(self, *call, **named):
            future: Future = Future()
            future.set_exception(BrokenProcessPool("a process was terminated abruptly"))
            return future

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Killed)
    with pytest.raises(UserError, match="processes=2: a worker was killed"):
        parallel.run_stages(number_stage, opened(processes=2), [((0,), {}), ((1,), {})])
