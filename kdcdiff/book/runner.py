"""`kdcdiff run`: the chapters, in the order of `_toc.yml`, through papermill into `_build/staged`, never in place.

A chapter that is up to date is skipped; its stamp tells (`staging`). Everything that can be refused is refused before
the first cell runs.
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
from kdcdiff.book.results import Results
from kdcdiff.book.staging import copy_pages, external_digest, is_current, publish, stamp_of
from kdcdiff.book.toc import Book, Page
from kdcdiff.data.names import DATASETS, checked_dataset
from kdcdiff.errors import UserError, check
from kdcdiff.experiments import profiles
from kdcdiff.experiments.run import checked_seed
from kdcdiff.process import wait_passively
from kdcdiff.provenance import PeakMemory
from kdcdiff.store import Store, write_atomically

KERNEL = "kdcdiff"
CELL_TIMEOUT = 4 * 3600  # seconds; papermill's own default is endless
Values = dict[str, Any]  # of a chapter's parameters, or of a profile's sizes


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
    """Execute the chapters of the book at `root` that are not up to date; return the names of those executed.

    `own` are notebook parameters, given to each chapter that declares them; those that are sizes of the profile hold
    for every chapter, since a stage that two of them read must be one and the same. Their values may be text, as from
    a command line. Relative paths are relative to `root`. UserError: anything that a chapter would refuse, before any
    work. ChapterFailed: a cell raised, ran out of time, or took its kernel down; the executed copy stays.
    """
    book = Book(Path(root).resolve())
    check(timeout > 0, "timeout", timeout, "must be a positive number of seconds")
    chosen = book.chosen(only)
    if dataset not in DATASETS:
        dataset = checked_dataset(str(book.root / Path(dataset).expanduser()))
    store = Store(book.root / Path(artifacts).expanduser(), say=lambda _: None)  # open, and so in use, to the end
    given: Values = {
        "profile": profiles.get(profile).name,
        "dataset": dataset,
        "seed": checked_seed(seed),
        "artifacts": str(store.root),
    }
    plan, sizes = _plan(book, chosen, given, own or {})
    copy_pages(book)
    Results(book.results).keep(chapter.name for chapter in book.chapters())
    external = external_digest(book, given["dataset"]) + (notebooks.digest(sizes) if sizes else "")
    executed = []
    with _kernel_environment(book, sizes), tqdm(plan, desc="chapters", unit="chapter", disable=None) as bar:
        for chapter, values in bar:
            bar.set_postfix_str(chapter.name)
            notebook = notebooks.read(book.root / chapter.path)
            stamp = stamp_of(book, chapter, notebook, values, external)
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
    book: Book, chosen: list[Page], given: Values, own: Mapping[str, Any]
) -> tuple[list[tuple[Page, Values]], Values]:
    """Type each chapter's values as it declares them, and find those that are sizes of the profile.

    A size may be declared by any chapter, another parameter by one that is to run. All refusals happen here.
    """
    plan: list[tuple[Page, Values]] = []
    sizes: Values = {}
    declared: set[str] = set()
    for chapter in chosen:
        notebook = notebooks.read(book.root / chapter.path)
        known = notebooks.parameters(notebook, chapter.name)
        idle = notebooks.unread(notebook, known)
        if idle:
            raise UserError(f"{chapter.name}: nothing reads the parameter{'s' * (len(idle) > 1)} {', '.join(idle)}")
        declared |= known.keys()
        values = {
            name: known[name].parse(value, chapter.name) for name, value in (given | dict(own)).items() if name in known
        }
        sizes |= _sizes_of(values)
        plan.append((chapter, values))
    elsewhere = own.keys() & set(profiles.allowed()) - declared
    for chapter in [chapter for chapter in book.chapters() if elsewhere and chapter not in chosen]:
        known = notebooks.parameters(notebooks.read(book.root / chapter.path), chapter.name)
        sizes |= _sizes_of({name: known[name].parse(own[name], chapter.name) for name in elsewhere & known.keys()})
    for name, value in own.items():
        words = f"no chapter to be run has this parameter; they have {', '.join(sorted(declared))}"
        check(name in declared | sizes.keys(), name, value, words)
    return plan, sizes


def _sizes_of(values: Values) -> Values:
    """Pick the values that are sizes of the profile and not None, checked."""
    named = values.keys() & set(profiles.allowed())
    return {name: profiles.checked(name, values[name]) for name in sorted(named) if values[name] is not None}


def _execute(book: Book, chapter: Page, values: Values, sizes: Values, stamp: str, timeout: float) -> tuple[float, int]:
    """Run one chapter and publish its copy; its seconds and peak bytes."""
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
        except (PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
            if isinstance(error, PapermillExecutionError):
                cause = f"{error.ename}: {_last_line(error.evalue)}"
            elif isinstance(error, CellTimeoutError):
                cause = f"ran longer than {timeout:g} s (--timeout)"
            else:
                cause = "the kernel died (out of memory, or killed)"
            raise ChapterFailed(f"{chapter.path.as_posix()}, {_cell_word(copy)}: {cause}") from None
    seconds = time.perf_counter() - start
    notebook = notebooks.read(copy)
    _verify(chapter, notebook, values)
    publish(book, chapter, notebook, values, sizes, stamp, seconds, memory.peak_bytes)
    return seconds, memory.peak_bytes


def _verify(chapter: Page, notebook: NotebookNode, values: Values) -> None:
    """Take not papermill's word: every cell has run, none failed, and the values arrived with their types."""
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
    """Name the cell at which an executed copy stopped, counted as in the source (from 1, prose included)."""
    word = "before its first cell"
    if not copy.exists():
        return word
    added = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [cell for cell in notebooks.read(copy).cells if not added & set(notebooks.tags(cell))]
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
def _kernel_environment(book: Book, sizes: Values) -> Iterator[None]:
    """Set up a kernelspec of exactly this interpreter, and the environment that kernels start with.

    A notebook's parameters and the run's `sizes` are what counts there, and threads wait passively unless the user says
    otherwise. All of it is taken back at the end.
    """
    folder = book.build / "jupyter" / "kernels" / KERNEL
    launcher = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
    spec = {"argv": launcher, "language": "python", "display_name": "kdcdiff"}
    write_atomically(folder / "kernel.json", json.dumps(spec))
    before = dict(os.environ)
    for name in ("KDCDIFF_PROFILE", "KDCDIFF_ARTIFACTS"):
        os.environ.pop(name, None)
    wait_passively()
    os.environ |= {
        "JUPYTER_PATH": os.pathsep.join([str(folder.parent.parent), *filter(None, [before.get("JUPYTER_PATH")])]),
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
