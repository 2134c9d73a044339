"""No paragraph of a docstring ends with a word or two that automatic wrapping left on a line of their own."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from .imports import REPO, python_files

WIDTH = 120
ORPHANED = 2  # words on the last line, where the lines above have room for them
LIST_ITEM = re.compile(r"[-*]\s|\d+\.\s|\S.*\S {2,}\S")  # a bullet, a number, or columns
QUOTES = '"""'


def paragraphs(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each paragraph of a file's docstrings: the number of its first line, and its lines, quotes included.

    Closing quotes on a line of their own count as the end of a docstring's only paragraph, where they would go.
    """
    source = path.read_text().splitlines()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            start, end = node.body[0].lineno - 1, node.body[0].end_lineno
            text = "\n".join(source[start:end])
            closing = text.rpartition("\n")[2].strip() == QUOTES and "\n\n" not in text
            at = start
            for block in text.split("\n\n"):
                lines = [line for line in block.splitlines() if line.strip() != QUOTES]
                if closing:
                    lines[-1] += QUOTES
                yield at + 1, lines
                at += len(block.splitlines()) + 1


def orphans(path: Path) -> list[str]:
    """`file:line: words` of each paragraph that would be a line shorter if it were wrapped at WIDTH."""
    found = []
    for number, lines in paragraphs(path):
        indents = {len(line) - len(line.lstrip()) for line in lines}
        prose = len(indents) == 1 and not any(LIST_ITEM.match(line.strip()) for line in lines)
        if prose and len(lines) > 1 and len(lines[-1].split()) <= ORPHANED:
            wrapped = textwrap.wrap(" ".join(line.strip() for line in lines), WIDTH - min(indents))
            if len(wrapped) < len(lines):
                found.append(f"{path.relative_to(REPO)}:{number}: {lines[-1].strip()}")
    return found


def test_no_paragraph_ends_with_an_orphaned_word():
    files = [path for path in python_files("kdcdiff", "benchmarks", "tests", "tools") if path.suffix == ".py"]
    assert [line for path in files for line in orphans(path)] == []
