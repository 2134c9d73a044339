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
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kdcdiff.book.chapter import Chapter
from kdcdiff.book.results import Results
from kdcdiff.process import keep_memory
from kdcdiff.store import Artifact, Store

Call = tuple[tuple[Any, ...], Mapping[str, Any]]  # arguments after the chapter


def run_stages(stage: Callable[..., Any], chapter: Chapter, calls: Iterable[Call], describe: str = "") -> None:
    """`stage(chapter, *args, **named)` for each of `calls`, in the profile's number of processes.

    What they return is dropped: `stage` keeps its result in the store, where the next call finds it. `stage` must be
    importable. The first error is raised and ends the rest.
    """
    listed = list(calls)
    count = min(chapter.profile.processes or len(os.sched_getaffinity(0)), len(listed))
    if chapter.device != "cpu" or count < 2:
        return
    whole = dataclasses.replace(chapter, store=None, results=None)  # type: ignore[arg-type]
    where = (chapter.store.root, chapter.results.path)
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin) as pool:
        futures = [pool.submit(_one, stage, whole, where, *call) for call in listed]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc=describe or stage.__name__):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin() -> None:
    """A worker: silent, of one thread, and gone when its parent is."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the bars of all workers would overwrite each other
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

    import torch

    torch.set_num_threads(1)
    keep_memory()


def _one(
    stage: Callable[..., Any], chapter: Chapter, where: tuple[Path, Path], args: tuple[Any, ...], named: Any
) -> None:
    root, results = where[0], Results(where[1])

    def used(artifact: Artifact, built: bool) -> None:
        results.use(artifact, chapter.name)

    store = Store(root, on_use=used, say=lambda line: None)
    stage(dataclasses.replace(chapter, store=store, results=results), *args, **named)
