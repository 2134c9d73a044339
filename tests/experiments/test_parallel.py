"""Stages made side by side are the stages that one process makes; whatever goes wrong in one is told."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest
import torch

from kdcdiff.errors import UserError
from kdcdiff.experiments import parallel, stages
from kdcdiff.experiments.continual import class_by_class
from kdcdiff.store import Store


@pytest.fixture
def one_thread():
    """As a worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_what_is_made_ahead_is_found_and_is_the_same(opened, one_thread, tmp_path):
    run = opened(processes=2, continual_classes=2, continual_steps=2)
    stages.student(run, run.profile.variant)
    calls = [(("naive",), {"repetition": k}) for k in range(2)]
    parallel.run_stages(class_by_class, run, calls)
    before = dict(opened.built)
    ahead = [class_by_class(run, "naive", repetition=k) for k in range(2)]
    assert dict(opened.built) == before, "nothing is made again"
    alone = class_by_class(dataclasses.replace(run, store=Store(tmp_path / "other")), "naive")
    assert torch.equal(ahead[0].images, alone.images), "wherever it is made"


def test_the_first_error_ends_the_call_with_its_line(opened):
    run = opened(processes=2)
    stages.student(run, run.profile.variant)
    with pytest.raises(UserError, match="method='(dragon|wyvern)'"):
        parallel.run_stages(class_by_class, run, [(("dragon",), {}), (("wyvern",), {"repetition": 1})])


class Inline:
    """A pool that does its work at once, and remembers how its workers would begin."""

    def __init__(self, count, context, begin, given):
        Inline.count, Inline.given = count, given

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, function, *own):
        done = Future()
        done.set_result(function(*own))
        return done


def test_each_gpu_has_a_worker_of_its_own(opened, monkeypatch):
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    seen = []
    run = dataclasses.replace(opened(processes=8), device="cuda")
    parallel.run_stages(lambda run, number: seen.append((run.device, number)), run, [((k,), {}) for k in range(3)])
    assert seen == [("cuda", 0), ("cuda", 1), ("cuda", 2)] and Inline.count == 2
    assert [Inline.given[0].get() for _ in range(2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert parallel._gpus() == ["3", "5"]


def test_on_one_gpu_nothing_is_made_ahead(opened, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    run = opened(processes=2)
    parallel.run_stages(stages.images, dataclasses.replace(run, device="cuda"), [(("train",), {}), (("test",), {})])
    assert not list(run.store.root.glob("*/manifest.json"))


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_parallel import wait_beside
from kdcdiff.experiments.run import open_run
from kdcdiff.experiments import parallel
if __name__ == "__main__":
    where = dict(profile="smoke", dataset="flora", seed=0, artifacts=sys.argv[1] + "/artifacts")
    run = open_run(processes=2, **where)
    parallel.run_stages(wait_beside, run, [((sys.argv[1], k), {}) for k in range(2)])
"""


def wait_beside(run, folder, number):
    Path(folder, f"{number}.pid").write_text(str(os.getpid()))
    time.sleep(300)


def test_workers_go_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), str(Path(__file__).parent)]
    parent = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    notes = [tmp_path / f"{k}.pid" for k in range(2)]
    deadline = time.monotonic() + 120
    while not all(note.exists() and note.read_text() for note in notes):
        assert parent.poll() is None and time.monotonic() < deadline, "both workers begin"
        time.sleep(0.1)
    workers_ = [psutil.Process(int(note.read_text())) for note in notes]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(workers_, timeout=30)
    assert not alive
