"""Every sentence of the papers, one after another, and what it is: so that none is skipped.

``coverage-<paper>.csv`` has a line for each sentence: its number, its first words, the start of its sha256, what it is,
and the claims that are made of it. The texts themselves are not part of this project; `sentences` splits them where
they lie beside, and the tests compare.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from kdcdiff.claims import tables
from kdcdiff.claims.model import SOURCES
from kdcdiff.errors import check

KINDS = {
    "claim": "can be true or false here; it names its claims",
    "definition": "says what a word, a symbol or a network is, or how something is done",
    "opinion": "praise, motive, hope or conjecture, which nothing could decide",
    "citation": "says what others have found or made",
    "description": "says what the paper, a section or a figure holds",
    "cells": "a row of a table or an equation, transcribed by itself; or a heading, a name, an address",
}
COLUMNS = ("sentence", "words", "sha256", "kind", "claims")
WORDS = 5  # of a sentence, to find it by
ENDS = re.compile(r"(?<=[.?!”])\s+(?=[A-Z“(\[\d•])|(?<=[a-z]\.)(?=[A-Z][a-z]+ [a-z])")
NO_END = re.compile(r"\b(?:Fig|Eq|No|al|vs|i\.e|e\.g|Dr|Md)\.$|\*vs\.\*$")
LINK = re.compile(r"\\?\[(?:\\\[)?([\w,.–-]+,?)(?:\\?\])?\]\(#[\w-]+\)")
# A manuscript's line number, at the start of a line or within.
NUMBERED = re.compile(r"^\s*-?\s*(?:[⁰¹²³⁴⁵⁶⁷⁸⁹]+|\d{2,3}(?= [A-Za-z“]| 1 Intro))\s*|(?<=\s)[⁰¹²³⁴⁵⁶⁷⁸⁹]{3}\s")
CELLS = re.compile(
    r"\d{3},\d{3} \d{3}\.\d\d$|\d ?± ?\d.* \d\.\d{2,3}$|\\mathcal|\(\d\)$|^[\\{]|^Dataset Model"
    r"|^(?:Oxford|Butterfly)[^.]{,20}$"
)
CAPTION = re.compile(r"^(?:Figure|Table) \d+:")
HEADING = re.compile(r"^(?:[1-9](?:\.\d)*\s+[A-Z][^.]{2,60}|Abstract|\(a\) .*|\(b\) .*|Refer to caption)$")


@dataclass(frozen=True)
class Sentence:
    """One line of a coverage file."""

    number: int
    words: str
    digest: str
    kind: str  # a key of KINDS
    claims: tuple[str, ...]


def digest(sentence: str) -> str:
    """Fingerprint a sentence by its letters and digits alone: 12 hexadecimal places."""
    return hashlib.sha256(re.sub(r"\W+", "", sentence.lower()).encode()).hexdigest()[:12]


def first_words(sentence: str) -> str:
    """Cut a sentence to its first words."""
    return " ".join(sentence.split()[:WORDS])


def sentences(text: str) -> list[str]:
    """Split a paper's text, up to its references, into sentences; rows of tables and equations are one each."""
    body = re.split(r"^References$", text, maxsplit=1, flags=re.MULTILINE)[0]
    body = re.sub(r"\$\$.*?\$\$", lambda m: "\n" + " ".join(m[0].split()) + "\n", body, flags=re.DOTALL)
    return [sentence for block in _blocks(body) for sentence in _split(block)]


def _blocks(body: str) -> Iterator[str]:
    """Yield running text, joined over line breaks, and everything that stands by itself on its own line."""
    running: list[str] = []
    for line in body.splitlines():
        line = NUMBERED.sub("", LINK.sub(r"[\1]", line)).strip().removeprefix("- ").removeprefix("**○** ").strip()
        if HEADING.match(line):
            yield from _flush(running)
            yield line
        elif CAPTION.match(line) or line.startswith("$$") or "\t" in line or _is_cells(line):
            if not running or _ended(running[-1]):  # or else a page ends in the midst of a sentence
                yield from _flush(running)
            yield line
        elif line:
            running.append(line)
            if line.endswith((".", ":", "?", "!")) and not NO_END.search(line):
                yield from _flush(running)
    yield from _flush(running)


def _flush(running: list[str]) -> Iterator[str]:
    """Give up the running text."""
    if running:
        yield " ".join(running)
        running.clear()


def _ended(line: str) -> bool:
    return line.endswith((".", ":", "?", "!", ",", "),"))


def _is_cells(line: str) -> bool:
    """Say whether a line is a row of KDC-Diff's tables, one of its equations, or a word of the typesetting."""
    return bool(CELLS.search(line))


def _split(block: str) -> Iterator[str]:
    """Split one block at the ends of sentences."""
    if "\t" in block or block.startswith("$$"):
        yield block
        return
    held = ""
    for piece in ENDS.split(re.sub(r"(\w)- (?=[a-z])", r"\1", block)):
        held = f"{held} {piece}".strip()
        if not NO_END.search(held):
            yield held
            held = ""
    if held:
        yield held


@lru_cache(maxsize=4)
def load(paper: str) -> tuple[Sentence, ...]:
    """Read a paper's coverage. UserError: an unknown kind, a number out of order, a claim that names none."""
    found = []
    for number, row in enumerate(tables.read_csv(f"coverage-{paper}.csv", COLUMNS), start=1):
        name = f"coverage-{paper}.csv sentence {row['sentence']}"
        check(row["sentence"] == str(number), name, row["words"], f"must be number {number}")
        check(row["kind"] in KINDS, name, row["kind"], f"one of {', '.join(KINDS)}")
        claims = tuple(row["claims"].split())
        check(bool(claims) or row["kind"] != "claim", name, row["words"], "a claim must name its claims")
        found.append(Sentence(number, row["words"], row["sha256"], row["kind"], claims))
    return tuple(found)


def named(papers: Iterable[str] = SOURCES) -> set[str]:
    """Name every claim that some sentence is covered by."""
    return {claim for paper in papers for sentence in load(paper) for claim in sentence.claims}
