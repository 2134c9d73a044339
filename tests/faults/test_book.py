"""A book whose run is ended from outside: no kernel stays, nothing half-made is taken for finished, and it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kdcdiff.book.staging import is_current
from kdcdiff.book.toc import Book

from ..conftest import REPO

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
