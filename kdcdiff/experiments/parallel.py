"""Independent stages made side by side, one process of one thread each.

A step of the small stack spends its time between kernels and not in them: at batch 16 a second thread saves a tenth of
it, while two processes of one thread each do nearly twice the work of one. A GPU is shared by nobody: where there are
several each has a worker of its own, and where there is one the stages are made in turn, by whoever asks for them. A
cluster's queue takes the pool's place where `executors` is told to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kdcdiff.errors import UserError
from kdcdiff.experiments.executors import EXECUTOR, submitted
from kdcdiff.experiments.run import Run
from kdcdiff.process import keep_memory
from kdcdiff.store import Artifact, Store

Call = tuple[tuple[Any, ...], Mapping[str, Any]]  # arguments after the run


def run_stages(stage: Callable[..., Any], run: Run, calls: Iterable[Call], describe: str = "") -> None:
    """Make `stage(run, *args, **named)` for each of `calls`, side by side: in the local pool, or as `EXECUTOR` says.

    The pool has a process for each GPU, or the profile's number on a CPU; what is in the store already starts none.
    What the calls return is dropped: `stage` keeps its result in the store, where the next call finds it. `stage` must
    be importable. The first error is raised and ends the rest.
    """
    file, gpus = os.environ.get(EXECUTOR), _gpus() if run.device == "cuda" else []
    workers = len(gpus) if run.device == "cuda" else run.profile.processes or len(os.sched_getaffinity(0))
    if workers < 2 and not file:
        return
    words = {field.name: getattr(run, field.name) for field in dataclasses.fields(Run) if field.name != "store"}
    wanting = Run(**words, store=_Reading(run.store.root, say=lambda line: None))
    works = [(stage, words, run.store.root, *call) for call in calls if _makes(stage, wanting, *call)]
    count = len(works) if file else min(len(works), workers)
    if count < 2:
        return
    root = run.store.root
    jobs = root.with_name(root.name + ".jobs")  # beside the store, which every machine sees
    ended = submitted(Path(file), jobs, _one, works) if file else _pooled(works, count, gpus)
    with contextlib.closing(ended):
        for line in tqdm(ended, total=len(works), desc=describe or stage.__name__):
            if line:
                raise UserError(line)


class _NotMade(Exception):
    """What was asked for is not in the store."""


class _Reading(Store):
    """A store that makes nothing."""

    def _build(self, name: str, recipe: dict[str, Any], make: Callable[[Path], None]) -> Artifact:
        raise _NotMade(name)


def _makes(stage: Callable[..., Any], run: Run, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Say whether a call would make anything; the store of `run` makes nothing."""
    try:
        stage(run, *args, **named)
    except _NotMade:
        return True
    return False


def _pooled(works: Sequence[tuple[Any, ...]], count: int, gpus: Sequence[str]) -> Generator[str]:
    """Do `works` in a pool of `count` processes, each with one of `gpus`; yield what each returns, as they end."""
    spawned = multiprocessing.get_context("spawn")
    free = spawned.SimpleQueue()
    for gpu in gpus:
        free.put(gpu)
    with ProcessPoolExecutor(count, spawned, _begin, (free if gpus else None,)) as pool:
        futures = [pool.submit(_one, *work) for work in works]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            told = "a worker was killed (out of memory?); what it had finished is kept, so run it again, with fewer"
            raise UserError(f"processes={count}: {told}") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _gpus() -> list[str]:
    """List the GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _begin(gpus: SimpleQueue[str] | None) -> None:
    """Make a worker: silent, of one thread, with one of `gpus` to itself where there are any, gone when its parent is.

    Which GPU must be said before torch looks for them.
    """
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the bars of all workers would overwrite each other
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

    import torch

    torch.set_num_threads(1)


def _one(
    stage: Callable[..., Any], words: Mapping[str, Any], root: Path, args: tuple[Any, ...], named: Mapping[str, Any]
) -> str:
    """Make a stage in a process of its own; return the line of what a user can put right, or nothing."""
    keep_memory()
    try:
        stage(Run(**words, store=Store(root, say=lambda line: None)), *args, **named)
    except UserError as error:
        return str(error)
    return ""
