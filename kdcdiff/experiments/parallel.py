"""Independent stages made side by side, one process of one thread each.

A step of the small stack spends its time between kernels and not in them: at batch 16 a second thread saves a tenth of
it, while two processes of one thread each do nearly twice the work of one. A GPU is shared by nobody: there the stages
are made in turn, by whoever asks for them.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kdcdiff.errors import UserError
from kdcdiff.experiments.run import Run
from kdcdiff.store import Store

Call = tuple[tuple[Any, ...], Mapping[str, Any]]  # arguments after the run


def run_stages(stage: Callable[..., Any], run: Run, calls: Iterable[Call], describe: str = "") -> None:
    """Make `stage(run, *args, **named)` for each of `calls`, in the profile's number of processes.

    What they return is dropped: `stage` keeps its result in the store, where the next call finds it. `stage` must be
    importable. The first error is raised and ends the rest.
    """
    listed = list(calls)
    count = min(run.profile.processes or len(os.sched_getaffinity(0)), len(listed))
    if run.device != "cpu" or count < 2:
        return
    words = {field.name: getattr(run, field.name) for field in dataclasses.fields(Run) if field.name != "store"}
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin) as pool:
        futures = [pool.submit(_one, stage, words, run.store.root, *call) for call in listed]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc=describe or stage.__name__):
                future.result()
        except BrokenProcessPool:
            told = "a worker was killed (out of memory?); what it had finished is kept, so run it again, with fewer"
            raise UserError(f"processes={count}: {told}") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    """Make a worker: silent, of one thread, and gone when its parent is."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the bars of all workers would overwrite each other
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

    import torch

    from kdcdiff.process import keep_memory

    torch.set_num_threads(1)
    keep_memory()


def _one(stage: Callable[..., Any], words: Mapping[str, Any], root: Path, args: tuple[Any, ...], named: Any) -> None:
    stage(Run(**words, store=Store(root, say=lambda line: None)), *args, **named)
