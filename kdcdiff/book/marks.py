"""The marks in the pages of prose: `<!-- chapters -->` and its like become tables of what was run, judged, recorded.

So that no figure on a page is written by hand, each mark is filled when the book is rendered.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote

from nbformat import NotebookNode

from kdcdiff.book import notebook as notebooks
from kdcdiff.book.costs import chapter_costs, chapter_table, stage_costs, stage_table
from kdcdiff.book.results import Result
from kdcdiff.book.tables import Table, table
from kdcdiff.book.toc import Book
from kdcdiff.claims.model import VERDICTS
from kdcdiff.claims.page import COLOURS, GREY
from kdcdiff.metrics.estimate import Estimate, as_estimate
from kdcdiff.provenance import libraries

DRAWN = ("drawing", "flora", "garden", "styles", "subjects")  # modules of `data`, on a page of their own
PACKAGES = ("models", "data", "training", "sampling", "metrics", "claims", "experiments", "book")
MARK = re.compile(r"<!-- ([a-z-]+) -->")
ENDPOINTS = {"class_accuracy": "accuracy", "fid": "FID", "kid": "KID", "clip": "CLIP", "perceptual": "perceptual"}
PARTS = {"mid stage (%)": "mid_block", "DownBlock2D (%)": "down_blocks.3", "UpBlock2D (%)": "up_blocks.0"}
MEASURES = {
    "average_accuracy": "average accuracy",
    "forgetting": "forgetting",
    "first_class_accuracy": "first class at the end",
}


def fill(book: Book) -> None:
    """Fill the marks in the staged pages; one that nobody knows stays as it is."""
    for page in book.pages():
        path = book.staged / page.path
        if not page.is_chapter:
            text = path.read_text()
            filled = MARK.sub(lambda found: MAKERS[found[1]](book) if found[1] in MAKERS else found[0], text)
            if filled != text:
                path.write_text(filled)


def colour(verdict: str) -> str:
    """Name a verdict's colour."""
    return COLOURS.get(verdict, GREY)


def verdict_bar(counts: Mapping[str, int], link: str) -> str:
    """Draw how many claims met each verdict, as one bar with its list, each linked to its claims."""
    met = [name for name, count in counts.items() if count]
    styles = {name: f"--kdc-verdict: {colour(name)}" for name in met}
    pieces = "".join(f'<i style="flex-grow: {counts[name]}; {styles[name]}"></i>' for name in met)
    links = {name: html.escape(f"{link}#verdict={quote(name)}") for name in met}
    items = "".join(
        f'<li style="{styles[name]}"><a href="{links[name]}"><b>{counts[name]}</b> {name}</a></li>' for name in met
    )
    said = f"{sum(counts.values())} claims: " + ", ".join(f"{counts[name]} {name}" for name in met)
    bar = f'<div role="img" aria-label="{html.escape(said)}">{pieces}</div>'
    return f'<div class="kdc-verdicts">{bar}<ul>{items}</ul></div>'


def glued(notebook: NotebookNode) -> dict[str, str]:
    """Read what an executed notebook has glued, by name, as text."""
    return {
        output.metadata["scrapbook"]["name"]: next(iter(output.data.values()))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "scrapbook" in output.get("metadata", {})
    }


def estimates(said: Mapping[str, str]) -> dict[str, Any]:
    """Put together what was glued: name -> an `Estimate` where its bounds were glued too, else the text."""
    return {
        name: Estimate(float(text), float(said[f"{name}.low"]), float(said[f"{name}.high"]))
        if {f"{name}.low", f"{name}.high"} <= said.keys()
        else text
        for name, text in said.items()
    }


@functools.cache
def figures_on_record(book: Book) -> dict[str, Result]:
    """Read what the chapters that a draft took as they are committed have glued; read once in a process."""
    found: dict[str, Result] = {}
    for chapter in book.chapters():
        copy = book.staged / chapter.path
        if copy.exists() and notebooks.is_committed(notebook := notebooks.read(copy)):
            for name, value in estimates(glued(notebook)).items():
                with contextlib.suppress(ValueError):  # a word is no figure
                    e = as_estimate(value if isinstance(value, Estimate) else float(value))
                    known = e.interval if e.is_known and not e.is_exact else None
                    found[name] = Result(name, e.value, e.unit, known, chapter=chapter.name)
    return found


def tally(values: Mapping[str, Any]) -> dict[str, int]:
    """Pick how many claims met each verdict from what was glued: the chapter of verdicts says `tally.<verdict>`."""
    counts = {name.removeprefix("tally."): value for name, value in values.items() if name.startswith("tally.")}
    return {name.replace("-", " "): int(value) for name, value in counts.items()}


def _verdicts(book: Book) -> str:
    page = next(page for page in book.chapters() if page.name == "verdicts")
    counts = tally(glued(notebooks.read(book.staged / page.path)))
    return verdict_bar(counts, f"../{page.path.with_suffix('.html').as_posix()}")


def _stages(book: Book) -> str:
    costs = stage_costs(book)
    return stage_table(costs)._repr_html_() if costs else "No chapter reads the store."


def _libraries(book: Book) -> Table:
    return table([{"library": name, "version": version} for name, version in libraries().items()])


def commands() -> str:
    """Write each command's own help."""
    files = {path.stem for path in (notebooks.PACKAGE / "cli").glob("*.py")}
    asked = {
        name: subprocess.Popen(
            [sys.executable, "-m", "kdcdiff", name, "--help"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"COLUMNS": "88", "NO_COLOR": "1"},
        )
        for name in sorted(files - {"__init__", "arguments"})
    }
    helps = {name: process.communicate()[0].strip() for name, process in asked.items()}
    return "\n\n".join(f"## `{name}`\n\n```text\n{said}\n```" for name, said in helps.items())


def interface(package: str = "", drawn: bool = False) -> str:
    """List the modules of a package, or those beside all packages, for Sphinx to read their docstrings.

    Those of `DRAWN` are left out, or with `drawn` alone there: on one page they would weigh too much.
    """
    paths = sorted((notebooks.PACKAGE / package).glob("*.py"))
    modules = [path.stem for path in paths if not path.stem.startswith("__") and (path.stem in DRAWN) == drawn]
    prefix = ".".join(filter(None, ["kdcdiff", package]))
    blocks = [f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {prefix}.{name}\n```" for name in modules]
    return "\n\n".join(blocks)


def _photographs(book: Book) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((book.root / "book" / "results" / "butterflies.json").read_text())
    return recorded


def photograph_badge(recorded: Mapping[str, Any]) -> str:
    """Say in one line at which profile, on what and where a recorded run was made."""
    first = next(iter(recorded["results"].values()))
    words = [f"profile {first['profile']}", f"data set {first['dataset']}", f"seed {first['seed']}"]
    words += [f"on {first['device']}", f"recorded {recorded['provenance']['created']}, not made again with the book"]
    spans = "".join(f"<span>{html.escape(word)}</span>" for word in words)
    return f'<div class="kdc-badge kdc-{html.escape(first["profile"])}">{spans}</div>'


def recorded_rows(
    results: Mapping[str, Any], prefix: str, heading: str, columns: Mapping[str, str]
) -> Iterable[dict[str, Any]]:
    """Gather results called `prefix.<row>.<figure>` into rows of estimates, in the order of the file."""
    rows: dict[str, dict[str, Any]] = {}
    for name, entry in results.items():
        row, _, figure = name.removeprefix(f"{prefix}.").rpartition(".")
        if name.startswith(f"{prefix}.") and figure in columns:
            low, high = entry["interval"] or (entry["value"], entry["value"])
            cells = rows.setdefault(row, {heading: row.replace("-to-", ">")} | dict.fromkeys(columns.values()))
            cells[columns[figure]] = Estimate(entry["value"], low, high, entry["n"])
    return rows.values()


def _photograph_rows(book: Book) -> Table:
    results = _photographs(book)["results"]
    rows = recorded_rows(results, "tables.butterflies", "row", ENDPOINTS)
    caption = "Table 1's rows on photographs: means over three seeds with Student's 95 % interval."
    return table(rows, caption=caption, formats={"FID": ".1f", "CLIP": ".3f"})


def _photograph_methods(book: Book) -> Table:
    rows = recorded_rows(_photographs(book)["results"], "continual", "method", MEASURES)
    caption = "Three species learnt one after another: means over three runs of different order, or one run."
    return table(rows, caption=caption)


def pilots(recorded: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Read the pilots of a teacher: what was set, for how long, how far the prediction moves without each part."""
    rows = []
    for row in recorded:
        pairs = [float(change) for name, change in row.items() if name.count(".") == 2]
        moved = {title: 100 * float(row[part]) for title, part in PARTS.items()}
        rows.append(
            {"setting": row["setting"], "steps": int(row["steps"])} | moved | {"least pair (%)": 100 * min(pairs)}
        )
    return rows


def _pilots(book: Book) -> Table:
    with (book.root / "book" / "results" / "pilots.csv").open(newline="") as lines:
        rows = pilots(csv.DictReader(lines))
    return table(
        rows, caption="Pilots: how far the prediction moves without a part, and without the least of the pairs."
    )


MAKERS: dict[str, Callable[[Book], str]] = {
    "api": lambda book: interface(),
    "api-drawn": lambda book: interface("data", drawn=True),
    **{f"api-{name}": lambda book, name=name: interface(name) for name in PACKAGES},  # type: ignore[misc]
    "chapters": lambda book: chapter_table(chapter_costs(book))._repr_html_(),
    "stages": _stages,
    "libraries": lambda book: _libraries(book)._repr_html_(),
    "verdicts": _verdicts,
    "commands": lambda book: commands(),
    "verdict-words": lambda book: table(
        [{"verdict": name, "meaning": meaning} for name, meaning in VERDICTS.items()]
    )._repr_html_(),
    "pilots": lambda book: _pilots(book)._repr_html_(),
    "photograph-badge": lambda book: photograph_badge(_photographs(book)),
    "photograph-rows": lambda book: _photograph_rows(book)._repr_html_(),
    "photograph-methods": lambda book: _photograph_methods(book)._repr_html_(),
}
