"""The staging folder, `_build/staged`: executed copies with their stamps, and the pages beside them.

A chapter's stamp is a hash of all that its figures depend on: the notebook's source, its parameters, the library and
its assets, the lock file, the image folder, the library versions, and the figures of earlier chapters.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import shutil
import sys
from datetime import UTC, datetime
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from PIL import Image

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.results import Results
from kdcdiff.book.toc import Book, Page
from kdcdiff.data.names import DATASETS
from kdcdiff.errors import UserError, one_line
from kdcdiff.provenance import commit, device_name, libraries
from kdcdiff.store import write_atomically


def stamp_of(book: Book, chapter: Page, notebook: NotebookNode, values: dict[str, Any], external: str) -> str:
    """Hash what `chapter`'s figures depend on; `external` is `external_digest`'s."""
    results = Results(book.results)
    earlier = [results.chapter(other.name) for other in takewhile(lambda page: page != chapter, book.chapters())]
    return notebooks.digest([notebooks.source_digest(notebook), values, external, earlier])


def external_digest(book: Book, dataset: str) -> str:
    """Hash the library, its assets, the lock file, the versions of libraries, and an image folder's listing."""
    lock = book.root / "requirements.lock"
    source = [path for path in notebooks.PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    listing = []
    if dataset not in DATASETS:
        files = (path for path in sorted(Path(dataset).rglob("*")) if path.is_file())
        listing = [[path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    library = notebooks.tree_digest(source, notebooks.PACKAGE)
    return notebooks.digest([library, lock.read_text() if lock.exists() else "", libraries(), sys.version, listing])


def is_current(book: Book, chapter: Page, stamp: str | None = None) -> bool:
    """Tell whether the executed copy is whole, recorded and of today's source; with `stamp`, also of its input."""
    copy = book.staged / chapter.path
    if not copy.exists():
        return False
    try:
        notebook = notebooks.read(copy)
    except UserError:
        return False
    made = notebook.metadata.get("kdcdiff", {})
    return (
        made.get("status") == "completed"
        and (stamp is None or made.get("stamp") == stamp)
        and made.get("whole") == _whole(notebook)
        and {"source": made.get("source"), "figures": made.get("figures")} == _present(book, chapter)
        and not notebooks.flaws(notebook)
    )


def _present(book: Book, chapter: Page) -> dict[str, str]:
    """Hash a chapter's source and its recorded figures as they are now."""
    return {
        "source": notebooks.source_digest(notebooks.read(book.root / chapter.path)),
        "figures": notebooks.digest(Results(book.results).chapter(chapter.name)),
    }


def _whole(notebook: NotebookNode) -> str:
    """Hash an executed copy but for this hash: its outputs are what the book shows."""
    own = {name: value for name, value in notebook.metadata.get("kdcdiff", {}).items() if name != "whole"}
    return notebooks.digest([notebook.cells, notebook.metadata | {"kdcdiff": own}])


def publish(
    book: Book,
    chapter: Page,
    notebook: NotebookNode,
    values: dict[str, Any],
    sizes: dict[str, Any],
    stamp: str,
    seconds: float,
    peak_bytes: int,
) -> None:
    """Make the executed copy fit to be read, and stamp it.

    The injected cell is hidden, what a cell printed is joined and rid of its progress, and two boxes at the end say
    what the chapter took, and which artifacts, versions and source its figures come from.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
        if "injected-parameters" in notebooks.tags(cell):
            cell.metadata["tags"] = [*notebooks.tags(cell), "remove-cell"]
    read = [stage for stage in Results(book.results).stages() if chapter.name in stage["chapters"]]
    boxes = [_cost_box(chapter, sizes | values, seconds, peak_bytes), _origin_box(read)]
    notebook.cells.append(nbformat.v4.new_markdown_cell("\n\n".join(boxes)))
    shown = sizes | values | {"dataset": _word(values["dataset"]), "artifacts": Path(values["artifacts"]).name}
    # papermill's own record names this machine's folders
    place = {"input_path": chapter.path.as_posix(), "output_path": chapter.path.as_posix()}
    notebook.metadata["papermill"] |= {"parameters": shown, "environment_variables": {}} | place
    notebook.metadata["kdcdiff"] = _present(book, chapter) | {
        "status": "completed",
        "stamp": stamp,
        "parameters": shown,
        "executor": f"papermill {metadata.version('papermill')}",
        "python": sys.version.split()[0],
        "profile": values["profile"],
        "seconds": seconds,
        "peak_bytes": peak_bytes,
        "device": device_name(),
        "commit": commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    notebook = nbformat.reads(nbformat.writes(notebook), as_version=4)  # as it will be read
    notebook.metadata["kdcdiff"]["whole"] = _whole(notebook)
    write_atomically(book.staged / chapter.path, nbformat.writes(notebook) + "\n")


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join what a cell printed, which its kernel sends in as many pieces as it likes; stderr is no result."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        elif not (output.output_type == "stream" and output.name == "stderr"):
            kept.append(output)
    return kept


def _cost_box(chapter: Page, values: dict[str, Any], seconds: float, peak_bytes: int) -> str:
    """Write the box that ends a chapter: what it took, and how to run it again."""
    own = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if name not in notebooks.STANDARD}
    options = "".join(f" -p {name} {shlex.quote(one_line(value))}" for name, value in own.items())
    word = _word(values["dataset"])
    source = word if word in DATASETS else f"path/to/{word}"
    return (
        f"```{{admonition}} What this chapter took\n:class: tip\n"
        f"{seconds:,.0f} s and {peak_bytes / 2**30:.1f} GiB at its peak, at profile `{values['profile']}` on `{word}`, "
        f"seed {values['seed']}, on {device_name()}. Stages that an earlier run had left in the store are not in it: "
        f"the status page has their own costs. To run it again:\n\n"
        f"    kdcdiff run --force --only {chapter.name} --profile {values['profile']} --dataset {source} "
        f"--seed {values['seed']}{options}\n```"
    )


def _origin_box(stages: list[dict[str, Any]]) -> str:
    """Write the folded box of a chapter's provenance; `stages` are the artifacts that it has read."""
    rows = "".join(
        f"| {stage['stage']} | `{stage['key'][:16]}` | {stage['seconds']:,.1f} | {stage['device']} |\n"
        for stage in stages
    )
    table = "| stage | key | made in (s) | on |\n|---|---|---|---|\n" + rows
    versions = ", ".join(f"{name} {version}" for name, version in libraries().items())
    source = f"commit `{made[:12]}`{' with changes' * made.endswith('+')}" if (made := commit()) else "no checkout"
    return (
        "```{admonition} Where its figures come from\n:class: dropdown\n"
        f"{table if stages else 'No stage of the store is read here.'}\n"
        f"Source: {source}. Python {sys.version.split()[0]}; {versions}. Run on {device_name()}. A folder of the "
        "store is called by its stage and its key; its `manifest.json` has settings, inputs and checksums.\n```"
    )


def _word(dataset: str) -> str:
    """Name a data set on a page: a folder without the path to it, and without what a page would read as markup."""
    return dataset if dataset in DATASETS else re.sub(r"[^\w .,-]", "_", Path(dataset).name)


def save_outputs(book: Book, only: list[str] | None = None) -> None:
    """Bring the staged outputs of chapters (None: of all) back into `notebooks/`, so that they can be committed.

    Injected cells and cost boxes stay out. The book is rendered from the executed copies, so here a figure full of
    pictures is kept as JPEG. UserError: a chapter that was not run from today's source.
    """
    for chapter in book.chosen(only):
        if not is_current(book, chapter):
            raise UserError(f"{chapter.name}: its executed copy is not up to date; `kdcdiff run` first")
    for chapter in book.chosen(only):
        source = notebooks.read(book.root / chapter.path)
        copied = notebooks.read(book.staged / chapter.path).cells
        executed = [cell for cell in copied if "injected-parameters" not in notebooks.tags(cell)]
        for cell, made in zip(source.cells, executed, strict=False):  # the copy ends with its cost box
            if cell.cell_type == "code":
                cell.outputs = [_lighter(output) for output in made.outputs]
                cell.execution_count = made.execution_count
        write_atomically(book.root / chapter.path, nbformat.writes(source) + "\n")


def _lighter(output: NotebookNode) -> NotebookNode:
    """Turn an output's PNG to JPEG where that has less than half the bytes: pictures do, drawn lines do not."""
    png = base64.b64decode(output.get("data", {}).get("image/png", ""))
    if png:
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(jpeg, "JPEG", quality=90, optimize=True)
        if len(jpeg.getvalue()) < len(png) / 2:
            del output["data"]["image/png"]
            output["data"]["image/jpeg"] = base64.b64encode(jpeg.getvalue()).decode()
    return output


def copy_pages(book: Book) -> None:
    """Bring the pages and settings in the staging folder up to date; drop what the source no longer has."""
    wanted = {Path("_config.yml"), Path("_toc.yml")} | {page.path for page in book.pages() if not page.is_chapter}
    wanted |= {path.relative_to(book.root) for path in (book.root / "book").rglob("*") if path.is_file()}
    chapters = {chapter.path for chapter in book.chapters()}
    if book.staged.exists():
        for path in [path for path in book.staged.rglob("*") if path.is_file()]:
            if path.relative_to(book.staged) not in wanted | chapters:
                path.unlink()
    for relative in sorted(wanted):
        target = book.staged / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(book.root / relative, target)
