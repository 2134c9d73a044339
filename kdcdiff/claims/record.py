"""The verdicts on record and the evidence they rest on; what is measured and asked for by no claim; drift.

``verdicts.csv`` has every claim's verdict, with tier and data set where it was measured; ``evidence.csv`` the recorded
results that those rest on, so that the measured verdicts are judged again in a test, without a run.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from kdcdiff.claims import checks, tables
from kdcdiff.claims.model import NOT_TESTED, VERDICTS, Claim, Evidence, Verdict
from kdcdiff.errors import check

MEANINGLESS = "smoke"  # the profile that tests the code and measures nothing
VERDICT_COLUMNS = ("id", "verdict", "tier", "dataset")
WHERE = ("unit", "profile", "dataset", "device", "chapter")
EVIDENCE_COLUMNS = ("name", "value", "low", "high", "n", "replicates", *WHERE)
COST = "stage."  # what making an artifact cost: shown on the status page, all of it, and no finding


@dataclass(frozen=True)
class Recorded:
    """One line of ``evidence.csv``: an `Evidence`."""

    value: float
    interval: tuple[float, float] | None
    n: int | None
    replicates: tuple[float, ...]
    unit: str
    profile: str
    dataset: str
    device: str
    chapter: str


@lru_cache(maxsize=1)
def verdicts() -> dict[str, dict[str, str]]:
    """Read the verdicts on record: claim id to its row. UserError: a word that is no verdict."""
    found = {r["id"]: r for r in tables.read_csv("verdicts.csv", VERDICT_COLUMNS)}
    for id, row in found.items():
        check(row["verdict"] in VERDICTS, f"verdicts.csv {id}", row["verdict"], f"one of {', '.join(VERDICTS)}")
    return found


@lru_cache(maxsize=1)
def evidence() -> dict[str, Recorded]:
    """Read the results that the verdicts on record rest on, by name."""
    return {row["name"]: _recorded(row) for row in tables.read_csv("evidence.csv", EVIDENCE_COLUMNS)}


def _recorded(row: Mapping[str, str]) -> Recorded:
    interval = (float(row["low"]), float(row["high"])) if row["low"] else None
    n = int(row["n"]) if row["n"] else None
    where = {key: row[key] for key in WHERE}
    replicates = tuple(map(float, row["replicates"].split()))
    return Recorded(value=float(row["value"]), interval=interval, n=n, replicates=replicates, **where)


def changed(judged: Iterable[Verdict]) -> list[tuple[Verdict, str]]:
    """List the verdicts that differ from the record, with what it says; a claim without a record has changed.

    A measured verdict is held against one of the same tier and data set, and against no other.
    """
    found = []
    for verdict in judged:
        row = verdicts().get(verdict.claim.id, {"verdict": "nothing", "tier": verdict.tier, "dataset": verdict.dataset})
        comparable = verdict.claim.offline or (row["tier"], row["dataset"]) == (verdict.tier, verdict.dataset)
        if comparable and row["verdict"] != verdict.outcome:
            found.append((verdict, row["verdict"]))
    return found


def line(name: str, result: Evidence) -> tuple[Any, ...]:
    """Lay a result out in ``evidence.csv``'s columns."""
    low, high = map(float, result.interval) if result.interval else ("", "")  # a whole number is written as it is read
    where, each = (getattr(result, key) for key in WHERE), " ".join(map(repr, result.replicates))
    return (name, float(result.value), low, high, result.n or "", each, *where)


def write(judged: Iterable[Verdict], results: Mapping[str, Evidence], folder: Path) -> None:
    """Put verdicts, and the results that the measured ones ask for, on record in `folder`."""
    rows, used = [], set()
    for v in judged:
        counted = bool(v.tier) and v.tier != MEANINGLESS
        outcome = v.outcome if counted or v.claim.offline else NOT_TESTED
        rows.append((v.claim.id, outcome, v.tier if counted else "", v.dataset if counted else ""))
        used |= set(checks.evidence_names(v.claim.check)) if counted else set()
    lines = [line(name, results[name]) for name in sorted(used)]
    for file, columns, body in (("verdicts.csv", VERDICT_COLUMNS, rows), ("evidence.csv", EVIDENCE_COLUMNS, lines)):
        with (folder / file).open("w", encoding="utf-8", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([columns, *body])


@lru_cache(maxsize=1)
def context() -> dict[str, str]:
    """Read every name of a result that no sentence is about, and why it is reported all the same."""
    file = yaml.safe_load(tables.data_text("context.yaml"))
    found: dict[str, str] = {}
    for pattern, why in file["results"].items():
        sets = re.findall(r"\{(\w+)\}", pattern)
        for word in sets:
            check(word in file["sets"], f"context.yaml {pattern}", word, f"one of {', '.join(file['sets'])}")
        for words in product(*(file["sets"][name] for name in sets)):
            name = pattern
            for key, word in zip(sets, words, strict=True):
                name = name.replace(f"{{{key}}}", word, 1)
            found[name] = why
    return found


def unasked(names: Iterable[str], claims: Iterable[Claim]) -> list[str]:
    """Name the recorded results that no claim asks for and that ``context.yaml`` does not list, costs aside."""
    wanted = {n for c in claims if c.check for n in checks.evidence_names(c.check)}
    return sorted(n for n in names if n not in wanted and n not in context() and not n.startswith(COST))
