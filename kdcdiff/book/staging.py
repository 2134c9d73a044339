"""The staging folder, `_build/staged`: executed copies with their stamps, the pages beside them, and what it
cost.

A chapter's stamp is a hash of all that its figures depend on: the notebook's source, its parameters, the
library and its assets, the lock file, the image folder, the library versions, and the figures of earlier
chapters.
"""

from __future__ import annotations

import base64
import io
import shutil
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from PIL import Image

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.notebook import Book, Page
from kdcdiff.book.results import Results
from kdcdiff.errors import UserError
from kdcdiff.experiments.run import DATASETS
from kdcdiff.provenance import commit, device_name, libraries
from kdcdiff.store import write_atomically

PACKAGE = Path(__file__).resolve().parent.parent


def stamp_of(book: Book, chapter: Page, notebook: NotebookNode, values: dict[str, Any], outside: str) -> str:
    earlier = []
    for other in book.chapters():
        if other == chapter:
            break
        earlier.append(Results(book.results).chapter(other.name))
    return notebooks.digest([notebooks.source_digest(notebook), values, outside, earlier])


def outside_digest(book: Book, dataset: str) -> str:
    """The library, its assets, the lock file, the versions of libraries, and an image folder's listing."""
    lock = book.root / "requirements.lock"
    source = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    listing = []
    if dataset not in DATASETS:
        files = (path for path in sorted(Path(dataset).rglob("*")) if path.is_file())
        listing = [[path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return notebooks.digest(
        [
            notebooks.tree_digest(source, PACKAGE),
            lock.read_text() if lock.exists() else "",
            libraries(),
            sys.version,
            listing,
        ]
    )


def is_current(book: Book, chapter: Page, stamp: str | None = None) -> bool:
    """Whether the executed copy is whole, recorded and of today's source; with `stamp`, also of its input."""
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
        and made.get("source") == notebooks.source_digest(notebooks.read(book.root / chapter.path))
        and made.get("figures") == notebooks.digest(Results(book.results).chapter(chapter.name))
        and not notebooks.flaws(notebook)
    )


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """A kernel sends what a cell prints in as many pieces as it likes; a reader wants one."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        elif not (output.output_type == "stream" and output.name == "stderr"):  # progress is no result
            kept.append(output)
    return kept


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
    """Make the executed copy fit to be read: hide the injected cell, join what was printed line by line, add the cost
    box, stamp it.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
        if "injected-parameters" in notebooks.tags(cell):
            cell.metadata["tags"] = [*notebooks.tags(cell), "remove-cell"]
    own = "".join(f" -p {name} {value}" for name, value in (sizes | values).items() if name not in notebooks.STANDARD)
    word = dataset_word(values["dataset"])
    source = word if word in DATASETS else f"path/to/{word}"
    shown = sizes | values | {"dataset": word, "artifacts": Path(values["artifacts"]).name}
    notebook.cells.append(
        nbformat.v4.new_markdown_cell(
            f"```{{admonition}} What this chapter took\n:class: tip\n"
            f"{seconds:,.0f} s and {peak_bytes / 2**30:.1f} GiB at its peak, at profile "
            f"`{values['profile']}` on `{word}`, seed {values['seed']}, on {device_name()}. Stages that an "
            f"earlier run had left in the store are not in it: the status page has their own costs. "
            f"To run it again:\n\n"
            f"    kdcdiff run --force --only {chapter.name} --profile {values['profile']} --dataset {source} "
            f"--seed {values['seed']}{own}\n```"
        )
    )
    # papermill's own record names this machine's folders
    notebook.metadata["papermill"] |= {
        "parameters": shown,
        "environment_variables": {},
        "input_path": chapter.path.as_posix(),
        "output_path": chapter.path.as_posix(),
    }
    notebook.metadata["kdcdiff"] = {
        "status": "completed",
        "stamp": stamp,
        "source": notebooks.source_digest(notebooks.read(book.root / chapter.path)),
        "figures": notebooks.digest(Results(book.results).chapter(chapter.name)),
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
    write_atomically(book.staged / chapter.path, nbformat.writes(notebook) + "\n")


def save_outputs(book: Book) -> None:
    """Bring the staged outputs back into `notebooks/`, cell by cell, so that they can be committed.

    UserError: a chapter that was not run from today's source. Injected cells and cost boxes stay out. The book is
    rendered from the executed copies, so here a figure full of pictures is kept as JPEG.
    """
    for chapter in book.chapters():
        if not is_current(book, chapter):
            raise UserError(f"{chapter.name}: its executed copy is not up to date; `kdcdiff run` first")
    for chapter in book.chapters():
        source = notebooks.read(book.root / chapter.path)
        executed = [
            cell
            for cell in notebooks.read(book.staged / chapter.path).cells
            if "injected-parameters" not in notebooks.tags(cell)
        ]
        for cell, made in zip(source.cells, executed, strict=False):  # the copy ends with its cost box
            if cell.cell_type == "code":
                cell.outputs = [_lighter(output) for output in made.outputs]
                cell.execution_count = made.execution_count
        write_atomically(book.root / chapter.path, nbformat.writes(source) + "\n")


def _lighter(output: NotebookNode) -> NotebookNode:
    """`output` with its PNG as JPEG where that has less than half the bytes: pictures do, drawn lines do not."""
    png = base64.b64decode(output.get("data", {}).get("image/png", ""))
    if png:
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(jpeg, "JPEG", quality=90, optimize=True)
        if len(jpeg.getvalue()) < len(png) / 2:
            del output["data"]["image/png"]
            output["data"]["image/jpeg"] = base64.b64encode(jpeg.getvalue()).decode()
    return output


def dataset_word(dataset: str) -> str:
    return dataset if dataset in DATASETS else Path(dataset).name


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


def costs(book: Book) -> dict[str, list[dict[str, Any]]]:
    """Time and memory per chapter (from papermill's metadata) and per stage (from the store's manifests)."""
    chapters = []
    for chapter in book.chapters():
        copy = book.staged / chapter.path
        made = notebooks.read(copy).metadata.get("kdcdiff", {}) if copy.exists() else {}
        keys = ("seconds", "peak_bytes", "profile", "device", "finished")
        status = made.get("status", "failed" if copy.exists() else "not run")
        chapters.append({"chapter": chapter.name, "status": status} | {key: made.get(key) for key in keys})
    stages: dict[str, dict[str, Any]] = {}
    for entry in Results(book.results).stages():
        row = stages.setdefault(
            entry["stage"],
            {
                "stage": entry["stage"],
                "artifacts": 0,
                "seconds": 0.0,
                "peak_bytes": 0,
                "bytes": 0,
                "chapter": entry["chapters"][0],
            },
        )
        row["artifacts"] += 1
        row["seconds"] += entry["seconds"]
        row["bytes"] += entry["bytes"]
        row["peak_bytes"] = max(row["peak_bytes"], entry["peak_bytes"])
    return {"chapters": chapters, "stages": list(stages.values())}


def cost_table(rows: list[dict[str, Any]]) -> str:
    """The stages' costs as aligned text."""
    lines = [f"{'stage':<28}{'first read in':<24}{'runs':>5}{'time':>12}{'peak':>12}{'on disk':>12}"]
    lines += [
        f"{row['stage']:<28}{row['chapter']:<24}{row['artifacts']:>5}{row['seconds']:>10,.1f} s"
        f"{row['peak_bytes'] / 2**30:>8.2f} GiB{row['bytes'] / 2**20:>8.1f} MiB"
        for row in rows
    ]
    total, disk = (sum(row[key] for row in rows) for key in ("seconds", "bytes"))
    peak = max((row["peak_bytes"] for row in rows), default=0)
    lines.append(f"{'all stages':<57}{total:>10,.1f} s{peak / 2**30:>8.2f} GiB{disk / 2**20:>8.1f} MiB")
    return "\n".join(lines)
