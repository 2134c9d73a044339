"""`kdcdiff run`: the chapters, in the order of `_toc.yml`, through papermill into `_build/staged`, never in
place.

A chapter that is up to date is skipped. That is judged by a stamp in the executed copy: a hash of the
notebook's source, its parameters, the library and its assets, the lock file, the image folder, the library
versions, and the figures that earlier chapters recorded. Everything that can be refused is refused before the
first cell runs.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.notebook import Book, Page, digest
from kdcdiff.book.results import Results
from kdcdiff.book.staging import copy_pages, is_current, outside_digest, publish, stamp_of
from kdcdiff.errors import UserError, check
from kdcdiff.experiments import profiles
from kdcdiff.experiments.run import DATASETS, checked_dataset, checked_seed
from kdcdiff.provenance import PeakMemory
from kdcdiff.store import Store, write_atomically

KERNEL = "kdcdiff"
CELL_TIMEOUT = 4 * 3600  # seconds; papermill's own default is endless


class ChapterFailed(Exception):
    """A chapter did not run to its end. The message names the notebook, the cell and the cause."""


def run(
    root: str | Path = ".",
    *,
    profile: str = "mini",
    dataset: str = "flora",
    seed: int = 0,
    artifacts: str | Path = "artifacts",
    only: list[str] | None = None,
    own: Mapping[str, Any] | None = None,
    timeout: float = CELL_TIMEOUT,
    force: bool = False,
) -> list[str]:
    """Execute the chapters of the book at `root` that are not up to date; the names of those executed.

    `own` are notebook parameters, given to each chapter that declares them; those that are sizes of the profile hold
    for every chapter, since a stage that two of them read must be one and the same. Their values may be text, as from
    a command line. Relative paths are relative to `root`. UserError: anything that a chapter would refuse,
    before any work. ChapterFailed: a cell raised, ran out of time, or took its kernel down; the executed copy
    stays.
    """
    book = Book(Path(root).resolve())
    check(timeout > 0, "timeout", timeout, "must be a positive number of seconds")
    chosen = book.chosen(only)
    if dataset not in DATASETS:
        dataset = checked_dataset(str(book.root / Path(dataset).expanduser()))
    given: dict[str, Any] = {
        "profile": profiles.get(profile).name,
        "dataset": dataset,
        "seed": checked_seed(seed),
        "artifacts": str(Store(book.root / Path(artifacts).expanduser(), say=lambda _: None).root),
    }
    plan, sizes = _plan(book, chosen, given, own or {})
    copy_pages(book)
    Results(book.results).keep(chapter.name for chapter in book.chapters())
    outside = outside_digest(book, given["dataset"]) + (digest(sizes) if sizes else "")
    executed = []
    with _kernel_environment(book, sizes), tqdm(plan, desc="chapters", unit="chapter", disable=None) as bar:
        for chapter, values in bar:
            bar.set_postfix_str(chapter.name)
            notebook = notebooks.read(book.root / chapter.path)
            stamp = stamp_of(book, chapter, notebook, values, outside)
            if not force and is_current(book, chapter, stamp):
                _say(f"{chapter.name}: up to date")
                continue
            seconds, peak = _execute(book, chapter, values, sizes, stamp, timeout)
            executed.append(chapter.name)
            _say(f"{chapter.name}: {seconds:,.1f} s, peak {peak / 2**30:.2f} GiB")
    return executed


def _say(line: str) -> None:
    tqdm.write(line)
    sys.stdout.flush()


def _plan(
    book: Book, chosen: list[Page], given: dict[str, Any], own: Mapping[str, Any]
) -> tuple[list[tuple[Page, dict[str, Any]]], dict[str, Any]]:
    """Each chapter with the values of its parameters, typed as declared, and those of them that are sizes of the
    profile. All refusals happen here.
    """
    plan: list[tuple[Page, dict[str, Any]]] = []
    sizes: dict[str, Any] = {}
    declared: set[str] = set()
    for chapter in chosen:
        notebook = notebooks.read(book.root / chapter.path)
        known = notebooks.parameters(notebook, chapter.name)
        deaf = notebooks.unread(notebook, known)
        if deaf:
            raise UserError(f"{chapter.name}: no cell reads the parameter{'s' * (len(deaf) > 1)} {', '.join(deaf)}")
        declared |= known.keys()
        values = {
            name: known[name].parse(value, chapter.name) for name, value in (given | dict(own)).items() if name in known
        }
        for name in values.keys() & set(profiles.allowed()):
            if values[name] is not None:
                sizes[name] = profiles.checked(name, values[name])
        plan.append((chapter, values))
    for name, value in own.items():
        check(
            name in declared,
            name,
            value,
            f"no chapter to be run has this parameter; they have {', '.join(sorted(declared))}",
        )
    return plan, sizes


def _execute(
    book: Book, chapter: Page, values: dict[str, Any], sizes: dict[str, Any], stamp: str, timeout: float
) -> tuple[float, int]:
    source, copy = book.root / chapter.path, book.staged / chapter.path
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)
    start = time.perf_counter()
    with PeakMemory() as memory:
        try:
            papermill.execute_notebook(
                source,
                copy,
                parameters=values,
                kernel_name=KERNEL,
                language="python",
                cwd=source.parent,
                progress_bar={"desc": f"  {chapter.name}", "leave": False, "disable": None},
                execution_timeout=timeout,
                start_timeout=120,
            )
        except PapermillExecutionError as error:
            cause = f"{error.ename}: {_last_line(error.evalue)}"
            raise ChapterFailed(f"{chapter.path.as_posix()}, {_cell_word(copy)}: {cause}") from None
        except CellTimeoutError:
            raise ChapterFailed(
                f"{chapter.path.as_posix()}, {_cell_word(copy)}: ran longer than {timeout:g} s (--timeout)"
            ) from None
        except DeadKernelError:
            raise ChapterFailed(
                f"{chapter.path.as_posix()}, {_cell_word(copy)}: the kernel died (out of memory, or killed)"
            ) from None
    seconds = time.perf_counter() - start
    notebook = notebooks.read(copy)
    _verify(chapter, notebook, values)
    publish(book, chapter, notebook, values, sizes, stamp, seconds, memory.peak_bytes)
    return seconds, memory.peak_bytes


def _verify(chapter: Page, notebook: NotebookNode, values: dict[str, Any]) -> None:
    """papermill's word is not enough: every cell has run, none failed, and the values arrived with their
    types.
    """
    flaws = notebooks.flaws(notebook)
    if flaws:
        raise ChapterFailed(f"{chapter.path.as_posix()}: {flaws[0]}")
    injected = next(cell for cell in notebook.cells if "injected-parameters" in notebooks.tags(cell))
    arrived = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(injected.source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for name, value in values.items():
        if repr(arrived.get(name)) != repr(value):
            raise ChapterFailed(f"{chapter.path.as_posix()}: {name}={value!r} arrived as {arrived.get(name)!r}")


def _cell_word(copy: Path) -> str:
    """The cell at which an executed copy stopped, counted as in the source (from 1, prose included)."""
    if not copy.exists():
        return "before its first cell"
    cells = [
        cell
        for cell in notebooks.read(copy).cells
        if not {"injected-parameters", "papermill-error-cell-tag"} & set(notebooks.tags(cell))
    ]
    word = "before its first cell"
    for number, cell in enumerate(cells, 1):  # every cell's status says completed, even after its kernel died
        if cell.cell_type == "code" and any(output.output_type == "error" for output in cell.outputs):
            return f"cell {number}"
        if cell.metadata.get("papermill", {}).get("start_time"):
            word = f"cell {number}"
    return word


def _last_line(text: str) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(text)).strip().splitlines()
    return lines[-1] if lines else ""


@contextlib.contextmanager
def _kernel_environment(book: Book, sizes: dict[str, Any]) -> Iterator[None]:
    """A kernelspec of exactly this interpreter, and an environment in which a notebook's parameters, and the run's
    `sizes`, are what counts.
    """
    folder = book.build / "jupyter" / "kernels" / KERNEL
    spec = {
        "argv": [
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
            "--log-level=CRITICAL",
        ],
        "language": "python",
        "display_name": "kdcdiff",
    }
    write_atomically(folder / "kernel.json", json.dumps(spec))
    path = os.pathsep.join([str(folder.parent.parent), *filter(None, [os.environ.get("JUPYTER_PATH")])])
    before = dict(os.environ)
    for name in ("KDCDIFF_PROFILE", "KDCDIFF_ARTIFACTS"):
        os.environ.pop(name, None)
    os.environ |= {
        "JUPYTER_PATH": path,
        "KDCDIFF_RESULTS": str(book.results),
        "KDCDIFF_SIZES": json.dumps(sizes),
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
