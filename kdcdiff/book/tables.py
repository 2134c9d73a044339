"""Tables for readers: aligned on the page and in plain text, and the same to the letter in every run.

    table(frame, caption="Models", formats={"accuracy": ".2f"}, highlight=lambda row: row["model"] == "kdc-described")

A cell that ends with one shows it. A cell marked NBVAL_CHECK_OUTPUT compares it exactly: nothing in it is random.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from kdcdiff.metrics.estimate import UNKNOWN, Estimate, written

Row = Mapping[str, Any]
MARKED = ' class="kdc-marked"'
# It may stand below its value where a table is wide.
_INTERVAL = re.compile(rf" (\[[-+]?[\d.,]+, [-+]?[\d.,]+\]|\({UNKNOWN}\))$")
_APART = r' <span class="kdc-interval">\1</span>'
FORMATS: dict[type, str] = {int: ",", float: ",.2f", Estimate: ".2f"}  # where `formats` says nothing


@dataclass(frozen=True)
class Table:
    """A table as it is shown: every cell is text. The first column names its row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: tuple[bool, ...]  # which columns hold figures, and so are aligned to the right
    marked: tuple[bool, ...]  # which rows stand out: tinted on the page, starred in the text
    caption: str | None = None

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[place]) for line in lines) for place in range(len(self.columns))]
        stars = ["", *(" *" if mark else "" for mark in self.marked)]
        text = [] if self.caption is None else [self.caption]
        for line, star in zip(lines, stars, strict=True):
            aligned = [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self.figures, strict=True)
            ]
            text.append(("  ".join(aligned) + star).rstrip())
        return "\n".join(text)

    def _repr_html_(self) -> str:
        head = "".join(self._cell("th", place, name, "col") for place, name in enumerate(self.columns))
        body = []
        for row, mark in zip(self.rows, self.marked, strict=True):
            cells = [self._cell("td" if place else "th", place, text, "row") for place, text in enumerate(row)]
            body.append(f"<tr{MARKED * mark}>{''.join(cells)}</tr>")
        caption = "" if self.caption is None else f"<caption>{html.escape(self.caption)}</caption>"
        lines = [f"<thead><tr>{head}</tr></thead>", "<tbody>", *body, "</tbody>"]
        return "\n".join([f'<table class="dataframe kdc-table">{caption}', *lines, "</table>"])

    def _cell(self, tag: str, place: int, text: str, scope: str) -> str:
        about = f' scope="{scope}"' * (tag == "th") + ' class="kdc-figure"' * self.figures[place]
        return f"<{tag}{about}>{_INTERVAL.sub(_APART, html.escape(text))}</{tag}>"


def table(
    data: pandas.DataFrame | Iterable[Row],
    *,
    caption: str | None = None,
    formats: Mapping[str, str] | str | None = None,
    highlight: Callable[[Row], bool] | None = None,
) -> Table:
    """Lay out a frame, or rows that map a column's name to its cell.

    Cells are estimates (``0.87 [0.81, 0.92]``), numbers, truths or text; None and NaN stay blank. `formats` gives a
    column's figures their format, or all columns' one. `highlight` says of a row, as it was given, whether it stands
    out. A frame's index comes first, unless it only counts the rows.
    """
    rows = _rows_of(data) if isinstance(data, pandas.DataFrame) else [dict(row) for row in data]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    given = {name: formats for name in columns} if isinstance(formats, str) else dict(formats or {})
    unknown = sorted(given.keys() - set(columns))
    if unknown:
        raise KeyError(f"formats for {', '.join(unknown)}: there is no such column in {', '.join(columns)}")
    return Table(
        tuple(columns),
        tuple(tuple(_text(row.get(name), given.get(name)) for name in columns) for row in rows),
        tuple(_is_figures([row.get(name) for row in rows]) for name in columns),
        tuple(bool(highlight and highlight(row)) for row in rows),
        caption,
    )


def _rows_of(frame: pandas.DataFrame) -> list[Row]:
    if not isinstance(frame.index, pandas.RangeIndex) or frame.index.name:
        frame = frame.reset_index(names=[name or "" for name in frame.index.names])
    return [dict(zip(map(str, frame.columns), row, strict=True)) for row in frame.itertuples(index=False, name=None)]


def _plain(value: Any) -> Any:
    """Return a cell as Python's own type, and None for what is missing."""
    value = value.item() if getattr(value, "shape", None) == () else value
    absent = value is pandas.NA or value is pandas.NaT or (isinstance(value, float) and math.isnan(value))
    return None if absent else value


def _is_figures(cells: Sequence[Any]) -> bool:
    kinds = {type(value) for value in map(_plain, cells) if value is not None}
    return bool(kinds) and kinds <= FORMATS.keys()


def _text(cell: Any, form: str | None) -> str:
    value = _plain(cell)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Estimate):
        return format(value, form or FORMATS[Estimate])
    if type(value) in FORMATS:
        return written(value, form or FORMATS[type(value)])
    return str(value)
