"""Prompts from the command line and from files. Does not import torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from kdcdiff.errors import check

SUFFIXES = (".txt", ".csv")


def read_prompts(words: Sequence[str]) -> list[tuple[str, str]]:
    """Read prompts and their classes ("" where there is none): each word is a prompt, or a file of them.

    A ``.txt`` file holds one a line; a ``.csv`` file has the columns text and, if it likes, class, as the table of a
    generated folder has. UserError: no such file, no prompt in it, a class that cannot be a folder's name.
    """
    found: list[tuple[str, str]] = []
    for word in words:
        path = Path(word)
        if path.suffix.lower() not in SUFFIXES:
            found.append((word, ""))
            continue
        check(path.is_file(), "prompts", word, "must be an existing file, or a prompt that does not end like one")
        with path.open(newline="", encoding="utf-8") as file:
            if path.suffix.lower() == ".txt":
                own = [(line.strip(), "") for line in file if line.strip()]
            else:
                table = csv.DictReader(file)
                check("text" in (table.fieldnames or ()), "prompts", word, "must have a column text")
                own = [(row["text"], row.get("class") or "") for row in table if row["text"]]
        check(bool(own), "prompts", word, "must hold at least one prompt")
        found += own
    for _, name in found:
        check(name in ("", Path(name).name) and name != "..", "class", name, "must be a name that a folder can have")
    return found
