"""Stages made side by side are the stages that one process makes; whatever goes wrong in one is told."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import submitit
import torch

from kdcdiff.errors import UserError
from kdcdiff.experiments import executors, parallel, stages
from kdcdiff.experiments.continual import class_by_class
from kdcdiff.store import Store

REPO = Path(__file__).resolve().parents[2]  # by hand, for a program below imports this file by itself


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


def test_what_is_there_starts_no_process(opened, monkeypatch):
    run, calls = opened(processes=2), [(("train",), {}), (("test",), {})]
    started = []

    def pooled(works, *_):
        started.extend(works)
        yield from ("" for _ in works)

    monkeypatch.setattr(parallel, "_pooled", pooled)
    parallel.run_stages(stages.images, run, calls)
    assert [work[3] for work in started] == [("train",), ("test",)] and not opened.built["images"]
    stages.images(run, "train")
    stages.images(run, "test")
    parallel.run_stages(stages.images, run, calls)
    assert len(started) == 2


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

    def stage(run, number):
        made = {"number": number}
        return run.store.get("seen", lambda folder, number: seen.append((run.device, number)), settings=made)

    run = dataclasses.replace(opened(processes=8), device="cuda")
    parallel.run_stages(stage, run, [((k,), {}) for k in range(3)])
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
    run.store.get("waits", _wait, settings={"beside": folder, "number": number})


def _wait(own, *, beside, number):
    Path(beside, f"{number}.pid").write_text(str(os.getpid()))
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


# --- in a queue ----------------------------------------------------------------------------------------------


@pytest.fixture
def queued(monkeypatch, tmp_path):
    """Names an executor's file with these lines."""

    def name(*lines: str) -> Path:
        file = tmp_path / "executor.yaml"
        file.write_text("\n".join(lines))
        return executors.use_executor(file)

    monkeypatch.setenv(executors.EXECUTOR, "")  # so that it is taken back
    return name


def test_submitits_own_processes_do_the_work(queued, tmp_path):
    """With the file that the book names, and work that loads nothing."""
    file, jobs = REPO / "book" / "executors" / "local.yaml", tmp_path / "artifacts.jobs"
    assert sorted(executors.submitted(file, jobs, str.upper, [("a",), ("b",)])) == ["A", "B"]
    assert not jobs.exists(), "logs of what went well are of no use"
    with pytest.raises(UserError, match="job .* ended without a result .* run it again; its log: .*artifacts.jobs"):
        list(executors.submitted(file, jobs, os._exit, [(3,)]))


def test_what_a_user_can_put_right_comes_back_as_its_line(opened):
    def refuse(run, *, steps):
        raise UserError(f"steps={steps}: must be more")

    run = opened()
    words = {field.name: getattr(run, field.name) for field in dataclasses.fields(run) if field.name != "store"}
    assert parallel._one(refuse, words, run.store.root, (), {"steps": 0}) == "steps=0: must be more"
    assert parallel._one(print, words, run.store.root, (), {}) == ""


class Job:
    """A job of a queue: its result, or how far it is, is `state`."""

    job_id, paths = "7", SimpleNamespace(stderr="7_0_log.err")

    def __init__(self, state, cancelled):
        self.state, self.cancelled = state, cancelled

    def done(self):
        return self.state != "waits"

    def result(self):
        if self.state == "killed":
            raise submitit.core.utils.UncompletedJobError("no output")
        if self.state == "failed":
            raise submitit.core.utils.FailedJobError("ValueError: and its traceback")
        return self.state

    def cancel(self, check=True):
        self.cancelled.append(self)


class Queue:
    """Stands for submitit's executor of any cluster: `states` are those of its jobs, in order."""

    def __init__(self, folder, cluster):
        self.states, self.cancelled = iter(Queue.states), Queue.cancelled
        Path(folder).mkdir()
        Queue.cluster = cluster

    def update_parameters(self, **told):
        Queue.told = told

    batch = contextlib.nullcontext

    def submit(self, work, *call):
        return Job(next(self.states) if Queue.states else work(*call), self.cancelled)


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.setattr(submitit, "AutoExecutor", Queue)
    Queue.cancelled, Queue.states = [], ()
    return Queue


def test_a_queue_takes_the_pools_place(queue, queued, opened):
    queued("cluster: slurm")
    run = opened(processes=1)
    parallel.run_stages(stages.images, run, [(("test",), {}), (("train",), {})])
    assert len(list(run.store.root.glob("images-*/manifest.json"))) == 2
    assert not opened.built["images"], "the jobs have made them"


def test_a_cluster_is_asked_as_its_file_says(queue, queued, tmp_path):
    queue.states = ["", "one line"]
    file = queued("cluster: slurm", "timeout_min: 5", "slurm_partition: gpu")
    assert list(executors.submitted(file, tmp_path / "jobs", print, [(1,), (2,)])) == ["", "one line"]
    assert (queue.cluster, queue.told) == ("slurm", {"timeout_min": 5, "slurm_partition": "gpu"})
    assert not (tmp_path / "jobs").exists() and not queue.cancelled


def test_a_job_that_is_killed_ends_the_rest_with_a_line(queue, queued, tmp_path):
    queue.states = ["killed", "waits"]
    with pytest.raises(UserError, match="job 7 ended without a result .* run it again; its log: 7_0_log.err"):
        list(executors.submitted(queued("cluster: slurm"), tmp_path / "jobs", print, [(1,), (2,)]))
    assert [job.state for job in queue.cancelled] == ["waits"]


def test_a_fault_of_the_program_stays_one(queue, queued, tmp_path):
    queue.states = ["failed"]
    with pytest.raises(submitit.core.utils.FailedJobError, match="its traceback"):
        list(executors.submitted(queued("cluster: slurm"), tmp_path / "jobs", print, [(1,)]))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["cluster: moon"], "cluster='moon': must be one of slurm, local"),
        (["slurm"], "must hold parameters, as `cluster: slurm`"),
        (["cluster: [slurm"], "cannot be read as YAML"),
    ],
)
def test_a_file_that_names_no_queue_is_one_line(queued, lines, told):
    with pytest.raises(UserError, match=told):
        queued(*lines)


def test_a_parameter_that_submitit_does_not_have_is_one_line(queued, tmp_path):
    file = queued("cluster: local", "slurm_room: 7")
    with pytest.raises(UserError, match="local takes no jobs .*slurm_room"):
        list(executors.submitted(file, tmp_path / "jobs", print, [(1,)]))


def test_the_files_that_the_book_names_can_be_read():
    for file in (REPO / "book" / "executors").glob("*.yaml"):
        assert executors.read_executor(file)[0] == file.stem
