"""A chapter's Answer: the word it begins with, and the whole of it with its values, for whoever reads it in Jupyter.

The prose of an Answer takes its words and its figures from the run, as {glue:text}`name:.3f`, which the rendered book
fills in and Jupyter does not know. So a chapter ends with a cell that fills it in there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nbformat import NotebookNode

from kdcdiff.metrics.estimate import UNKNOWN, Estimate, written

HEADING = "## Answer"
_GLUE = re.compile(r"\{glue:text\}`([^`:]+)(?::([^`]+))?`")
_ROUNDED = re.compile(r"(\{glue:text\}`[^`:]+:[-+ ]?)(?=[\d,.]*[fg%]`)")
_BOUNDS = re.compile(r"\[\{glue:text\}`([^`:]+)\.low(?::[^`]*)?`, \{glue:text\}`\1\.high(?::[^`]*)?`\]")
_LINK = re.compile(r"\{(?:ref|numref|doc)\}`([^`<]+?)(?:\s*<[^`>]*>)?`")
_CITATION = re.compile(r"\s*\{cite\}`[^`]*`")


def decide(change: Estimate, than: float = 0.0, *, words: tuple[str, str, str] = ("Yes", "No", "Undecided")) -> str:
    """Say whether a quantity is above `than`: the first word, below it: the second; the third where it may be either.

    The estimate's 95 % interval decides, so a difference that the sample is too small to show is *undecided*.
    """
    if change.low > than:
        return words[0]
    return words[1] if change.high < than else words[2]


def agreed(changes: Iterable[Estimate], *, words: tuple[str, str, str]) -> str:
    """Say what `decide` says of every one of `changes`; the third word where they differ."""
    said = {decide(change, words=words) for change in changes}
    return said.pop() if len(said) == 1 else words[2]


def answer_of(notebook: NotebookNode) -> str:
    """Cut a chapter's Answer from its prose, up to the next heading or box; nothing where it has none."""
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown" and HEADING in cell.source]
    rest = prose[-1].partition(HEADING)[2] if prose else ""
    return str(re.split(r"^(?:#|```|:::)", rest, maxsplit=1, flags=re.MULTILINE)[0].strip())


def without_unknown(text: str, values: Mapping[str, Any]) -> str:
    """Say that there is no interval in the place of the glue of two bounds, [low, high], where either is infinite."""

    def bounds(match: re.Match[str]) -> str:
        ends = (values.get(f"{match[1]}.{end}", 0) for end in ("low", "high"))
        return match[0] if all(math.isfinite(float(end)) for end in ends) else f"({UNKNOWN})"

    return _BOUNDS.sub(bounds, text)


def without_negative_zero(text: str) -> str:
    """Have glued figures that round to zero written without a sign (the option z of Python's formats)."""
    return _ROUNDED.sub(r"\1z", text)


def filled(text: str, values: Mapping[str, Any]) -> str:
    """Put values in the place of their glue, and the words of a link in the place of the link; citations go."""

    def value(match: re.Match[str]) -> str:
        return written(values[match[1]], match[2] or "") if match[1] in values else match[0]

    return _CITATION.sub("", _LINK.sub(r"\1", _GLUE.sub(value, without_unknown(text, values))))
