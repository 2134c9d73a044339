"""Tables and lists of words that come from outside: bounded, UTF-8, refused in one line. Does not import torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcdiff.errors import UserError, check

LARGEST = 2**28  # bytes of a table or a list: a caption each for a million pictures
MOST_ROWS = 2**23  # of a table that says how many it has before they are read
LONGEST = 10_000  # characters of one prompt or caption; no text encoder reads more than some hundred


def read_lines(path: Path, word: str) -> list[str]:
    """Read the lines of a text file that hold something. `word` names what it is. UserError: it cannot be read."""
    return [line.strip() for line in _lines(path, word) if line.strip()]


def read_table(path: Path, word: str) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV file: its columns, and its rows by column. UserError: it cannot be read as one."""
    try:
        table = csv.DictReader(_lines(path, word))
        rows = list(table)
    except csv.Error as error:
        raise UserError(f"{word}={str(path)!r}: cannot be read as a table ({error})") from None
    return list(table.fieldnames or ()), rows


def read_json(path: Path, word: str) -> Any:
    """Read a JSON file. UserError: it cannot be read as one."""
    try:
        return json.loads("".join(_lines(path, word)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{word}={str(path)!r}: cannot be read as JSON ({error})") from None


# --- row by row: a table may be as long as a set of pictures is large --------------------------------------------


def csv_rows(path: Path, word: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file by column; a torn one has None in it. UserError: it cannot be read as one."""
    try:
        yield from csv.DictReader(_lines(path, word))
    except csv.Error as error:
        raise UserError(f"{word}={str(path)!r}: cannot be read as a table ({error})") from None


def json_rows(path: Path, word: str) -> Iterator[dict[str, str]]:
    """Yield the objects of a file that has one a line, their values as words. UserError: a line that is none."""
    for line in filter(str.strip, _lines(path, word)):
        try:
            yield {name: str(value) for name, value in json.loads(line).items() if value is not None}
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{word}={str(path)!r}: must hold a JSON object a line, not {line.strip()[:60]!r}"
            ) from error


def parquet_rows(path: Path, word: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a Parquet file: its columns of text, which alone are read.

    UserError: it cannot be read as one, says that it is larger than a table may be, or pyarrow is not installed.
    """
    _check_size(path, word)
    try:
        from pyarrow import compute, parquet
    except ImportError:
        raise UserError(f"{word}={str(path)!r}: needs pyarrow: pip install 'kdcdiff[shards]'") from None
    try:
        columns = [field.name for field in parquet.read_schema(path) if str(field.type) in ("string", "large_string")]
        with parquet.ParquetFile(path, read_dictionary=columns) as table:  # a value that comes often is held once
            groups = (table.metadata.row_group(i) for i in range(table.metadata.num_row_groups))
            size, rows = sum(group.total_byte_size for group in groups), table.metadata.num_rows
            check(size <= 4 * LARGEST, word, str(path), f"unfolds to {size:,} bytes; at most {4 * LARGEST:,} are read")
            check(rows <= MOST_ROWS, word, str(path), f"has {rows:,} rows; at most {MOST_ROWS:,} are read")
            for batch in table.iter_batches(1024, columns=columns):
                for column in batch.columns:
                    longest = compute.max(compute.binary_length(column.dictionary)).as_py() or 0
                    allowed = f"has {longest:,} bytes in a field; at most {4 * LONGEST:,} are read"
                    check(longest <= 4 * LONGEST, word, str(path), allowed)
                yield from ({name: value or "" for name, value in row.items()} for row in batch.to_pylist())
    except UserError:
        raise
    except Exception as error:  # a decoder of files that were made to break it fails in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UserError(f"{word}={str(path)!r}: cannot be read as a Parquet table ({reason})") from error


def checked_text(text: str, word: str) -> str:
    """Return a prompt or caption. UserError: more than `LONGEST` characters, or some that are no text."""
    check(len(text) <= LONGEST, word, text[:40] + "...", f"has {len(text):,} characters; at most {LONGEST:,} are read")
    broken = "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)
    check(not broken, word, text[:40], "must be text, in UTF-8")
    return text


def _check_size(path: Path, word: str) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{word}={str(path)!r}: cannot be read ({error.strerror})") from None
    check(size <= LARGEST, word, str(path), f"has {size:,} bytes; at most {LARGEST:,} are read")


def _lines(path: Path, word: str) -> Iterator[str]:
    """Yield the lines of a text file with their ends, as a CSV reader wants them."""
    _check_size(path, word)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from stream
    except UnicodeDecodeError as error:
        raise UserError(f"{word}={str(path)!r}: must be text in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{word}={str(path)!r}: cannot be read ({error.strerror})") from None
