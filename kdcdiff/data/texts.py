"""Tables and lists of words that come from outside: bounded, UTF-8, refused in one line. Does not import torch."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from kdcdiff.errors import UserError, check

LARGEST = 2**28  # bytes of a table or a list: a caption each for a million pictures
LONGEST = 10_000  # characters of one prompt or caption; no text encoder reads more than some hundred


def read_lines(path: Path, word: str) -> list[str]:
    """Read the lines of a text file that hold something. `word` names what it is. UserError: it cannot be read."""
    return [line.strip() for line in _text(path, word).split("\n") if line.strip()]


def read_table(path: Path, word: str) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV file: its columns, and its rows by column. UserError: it cannot be read as one."""
    try:
        table = csv.DictReader(io.StringIO(_text(path, word), newline=""))
        rows = list(table)
    except csv.Error as error:
        raise UserError(f"{word}={str(path)!r}: cannot be read as a table ({error})") from None
    return list(table.fieldnames or ()), rows


def read_json(path: Path, word: str) -> Any:
    """Read a JSON file. UserError: it cannot be read as one."""
    try:
        return json.loads(_text(path, word))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{word}={str(path)!r}: cannot be read as JSON ({error})") from None


def checked_text(text: str, word: str) -> str:
    """Return a prompt or caption. UserError: more than `LONGEST` characters, or some that are no text."""
    check(len(text) <= LONGEST, word, text[:40] + "...", f"has {len(text):,} characters; at most {LONGEST:,} are read")
    broken = "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
    check(not broken, word, text[:40], "must be text, in UTF-8")
    return text


def _text(path: Path, word: str) -> str:
    try:
        size = path.stat().st_size
        check(size <= LARGEST, word, str(path), f"has {size:,} bytes; at most {LARGEST:,} are read")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{word}={str(path)!r}: must be text in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{word}={str(path)!r}: cannot be read ({error.strerror})") from None
