"""Prompts from the command line and from files. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdcdiff.data import coco
from kdcdiff.data.texts import checked_text, read_lines, read_table
from kdcdiff.errors import check, one_line

SUFFIXES = (".txt", ".csv", ".json")


def read_prompts(words: Sequence[str]) -> list[tuple[str, str]]:
    """Read prompts and their classes ("" where there is none): each word is a prompt, or a file of them.

    A ``.txt`` file holds one a line; a ``.csv`` file has the columns text and, if it likes, class, as the table of a
    generated folder has; of a ``.json`` file, MS-COCO's captions, `coco.sample` draws some. UserError: no such file, no
    prompt in it, a class that cannot be a folder's name.
    """
    found: list[tuple[str, str]] = []
    for word in words:
        path = Path(word)
        if path.suffix.lower() not in SUFFIXES:
            found.append((word, ""))
            continue
        check(path.is_file(), "prompts", word, "must be an existing file, or a prompt that does not end like one")
        if path.suffix.lower() == ".txt":
            own = [(line, "") for line in read_lines(path, "prompts")]
        elif path.suffix.lower() == ".json":
            own = [(caption.text, "") for caption in coco.sample(coco.read_captions(path))]
        else:
            columns, rows = read_table(path, "prompts")
            check("text" in columns, "prompts", word, "must have a column text")
            own = [(row["text"], row.get("class") or "") for row in rows if row["text"]]
        check(bool(own), "prompts", word, "must hold at least one prompt")
        found += own
    for text, name in found:
        checked_text(text, "prompts")
        check(bool(text.strip()), "prompts", text, "must hold at least one word")
        plain = name in ("", Path(name).name) and name != ".." and len(name.encode()) < 200 and one_line(name) == name
        check(plain, "class", name, "must be a name that a folder can have")
    return found
