"""The papers' tables and numbers as data, and addresses into them.

A cell's address is ``table/row/column``, or ``table/data set/row/column`` where a table has two data sets:
``kdc-diff-1/flowers/kdc-diff/fid``. A ``*`` stands for every row. Cells keep their text: 28.00 is not 28.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml

from kdcdiff.errors import UserError, check

DATA = Path(__file__).parent / "data"
KEY_COLUMNS = ("dataset", "row")
TEXT_COLUMNS = ("label", "role", "student", "teacher", "network", "type", "weights", "output_kd", "feature_kd",
                "mid_removed")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One printed cell. `value` is None where the cell is empty or holds words."""

    address: str
    text: str
    value: float | None
    better: str = ""  # low, high or nothing: how its column ranks
    role: str = ""


@dataclass(frozen=True)
class Table:
    """One printed table; `rows` keep its order."""

    name: str
    paper: str
    source: str
    title: str
    columns: dict[str, dict[str, str]]
    rows: list[dict[str, str]] = field(repr=False)

    def key(self, row: Mapping[str, str]) -> str:
        """Give the address of a row."""
        return "/".join([self.name, *(row[k] for k in KEY_COLUMNS if k in row)])

    def cell(self, row: Mapping[str, str], column: str) -> Cell:
        """Read one cell of a row. ValueError: a word where a number belongs."""
        text = row[column]
        value = None if column in TEXT_COLUMNS or not text else number(text)
        better = self.columns.get(column, {}).get("better", "")
        return Cell(f"{self.key(row)}/{column}", text, value, better, row.get("role", ""))


def number(text: str) -> float:
    """Read a printed number; thousands commas are dropped."""
    return float(text.replace(",", ""))


def data_text(name: str) -> str:
    """Read a file of this package's ``data``."""
    return (DATA / name).read_text(encoding="utf-8")


def read_csv(name: str, columns: tuple[str, ...] | None = None) -> list[dict[str, str]]:
    """Read a data file's rows. UserError: a row that does not fill every column, or a header other than `columns`."""
    lines = list(csv.reader(data_text(name).splitlines()))
    header, rows = lines[0], lines[1:]
    expected = tuple(header) if columns is None else columns
    check(tuple(header) == expected, f"{name} header", header, f"must be {', '.join(expected)}")
    for i, row in enumerate(rows, start=2):
        check(len(row) == len(header), f"{name} line {i}", row, f"must have {len(header)} cells")
    return [dict(zip(header, row, strict=True)) for row in rows]


@lru_cache(maxsize=1)
def load_tables() -> dict[str, Table]:
    """Read all transcribed tables by name. UserError: an unknown column, a row twice, a word for a number."""
    found, described = {}, {"paper", "source", "title", "columns"}
    for name, about in yaml.safe_load(data_text("tables.yaml")).items():
        check(
            set(about) == described, f"tables.yaml {name}", sorted(about), f"must have {', '.join(sorted(described))}"
        )
        table = Table(name=name, rows=read_csv(f"{name}.csv"), **about)
        _validate(table)
        found[name] = table
    return found


def _validate(table: Table) -> None:
    """Raise `UserError` where a table's rows and its description do not fit."""
    keys = [table.key(row) for row in table.rows]
    check(len(set(keys)) == len(keys), table.name, keys, "rows must be unique")
    for column in table.rows[0]:
        known = column in table.columns or column in TEXT_COLUMNS or column in KEY_COLUMNS
        check(known, f"{table.name} column", column, "must be described in tables.yaml")
    for row in table.rows:
        for column in table.columns:
            check(column in row, f"{table.name} column", column, "is described but not there")
            try:
                table.cell(row, column)
            except ValueError as error:
                raise UserError(f"{table.key(row)}/{column}={row[column]!r}: must be a number") from error


def cells(address: str) -> list[Cell]:
    """Find the cells at an address; ``*`` stands for any data set or row. UserError: there is none."""
    table_name, *path = address.split("/")
    table = load_tables().get(table_name)
    if table is None:
        raise UserError(f"address={address!r}: no such table; there are {', '.join(load_tables())}")
    keys = [k for k in KEY_COLUMNS if k in table.rows[0]]
    check(len(path) == len(keys) + 1, "address", address, f"must have {len(keys) + 1} parts after the table")
    *where, column = path
    check(column in table.rows[0], "address", address, f"no such column; there are {', '.join(table.rows[0])}")
    rows = [r for r in table.rows if all(w in ("*", r[k]) for w, k in zip(where, keys, strict=True))]
    check(bool(rows), "address", address, "no such row")
    return [table.cell(row, column) for row in rows]


def cell(address: str) -> Cell:
    """Find the one cell at an address. UserError: there is none, or there are several."""
    found = cells(address)
    check(len(found) == 1, "address", address, f"names {len(found)} cells where one is asked for")
    return found[0]


def peers(address: str) -> list[Cell]:
    """Find the filled cells that share a cell's table, data set and column, itself among them."""
    head, _, column = address.rpartition("/")
    return [c for c in cells(f"{head.rpartition('/')[0]}/*/{column}") if c.value is not None]


@dataclass(frozen=True)
class PrintedNumber:
    """A number from running text (a paper) or from outside (a fact), with its source."""

    id: str
    value: float
    text: str
    unit: str
    source: str
    quote: str


@lru_cache(maxsize=2)
def printed_numbers(file: str) -> dict[str, PrintedNumber]:
    """Read ``numbers.csv``, what the papers' running text states, or ``facts.csv``, what others publish; by id."""
    rows = read_csv(file, ("id", "value", "unit", "source", "quote"))
    check(len({r["id"] for r in rows}) == len(rows), file, "id", "must be unique")
    return {
        r["id"]: PrintedNumber(r["id"], number(r["value"]), r["value"], r["unit"], r["source"], r["quote"])
        for r in rows
    }


def stated(id: str) -> PrintedNumber:
    """Find a number that a paper's text states. UserError: there is none of that id."""
    return _printed_number("numbers.csv", id)


def fact(id: str) -> PrintedNumber:
    """Find a number from outside both papers. UserError: there is none of that id."""
    return _printed_number("facts.csv", id)


def _printed_number(file: str, id: str) -> PrintedNumber:
    check(id in printed_numbers(file), f"{file} id", id, "there is no such number")
    return printed_numbers(file)[id]
