"""`kdcdiff claims`: the verdict table in a terminal, or as a data set."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

from kdcdiff.book.results import Results
from kdcdiff.claims import export, record, tables
from kdcdiff.claims.judging import judge_all
from kdcdiff.claims.model import AGAINST, SEVERITIES, SOURCES, VERDICTS, Evidence, Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--paper", choices=tuple(SOURCES), help="only this source's claims")
    add("--verdict", choices=tuple(VERDICTS), help="only claims with this verdict")
    add("--severity", choices=tuple(SEVERITIES), help="only claims of this severity")
    evidence = "recorded evidence (default: %(default)s; without the file, the evidence on record)"
    add("--results", type=Path, default=Path("_build/results.json"), metavar="FILE", help=evidence)
    add("--json", action="store_true", help="print JSON instead of the table")
    add("--export", type=Path, metavar="FOLDER", help="write claims, verdicts and evidence as a data set (RO-Crate)")
    add("--record", action="store_true", help="put these verdicts, and what they rest on, on record in the package")


def run(args: argparse.Namespace) -> int:
    """Print the verdicts, or write them where asked to; 1 where one differs from the record."""
    evidence: Mapping[str, Evidence] = Results.load(args.results) if args.results.exists() else record.evidence()
    if args.record:  # smoke tests the code and measures nothing
        evidence = {name: result for name, result in evidence.items() if result.profile != record.MEANINGLESS}
    verdicts = judge_all(evidence)
    if args.record:
        record.write(verdicts, evidence, tables.DATA)
        print(f"{len(verdicts)} verdicts on record in {tables.DATA}")
        return 0
    if args.export is not None:
        written = export.write(verdicts, evidence, args.export)
        print(f"{len(verdicts)} claims, {len(written)} files in {args.export}")
        return 0
    wanted = {"paper": args.paper, "severity": args.severity}
    chosen = [v for v in verdicts if all(w in (None, getattr(v.claim, name)) for name, w in wanted.items())]
    shown = [v for v in chosen if args.verdict in (None, v.outcome)]
    print(json.dumps([v.as_row() for v in shown], indent=1, ensure_ascii=False) if args.json else as_text(shown))
    differing = record.changed(chosen)
    for verdict, before in differing:
        now = f"{verdict.claim.id} is {verdict.outcome}, on record it was {before} ({verdict.reason})"
        print(f"changed: {now}", file=sys.stderr)
    return 1 if differing else 0


def as_text(verdicts: list[Verdict]) -> str:
    """Write one line a claim; below, how many there are of each verdict, and of each severity of what does not hold."""
    if not verdicts:
        return "no claim of that kind"
    lines = [f"{v.outcome:<26} {v.claim.id:<36} {shorten(v.claim.quote, 56, placeholder=' ...')}" for v in verdicts]
    outcomes = Counter(v.outcome for v in verdicts)
    weights = Counter(v.claim.severity for v in verdicts if v.outcome in AGAINST)
    tally = ", ".join(f"{outcomes[name]} {name}" for name in VERDICTS if outcomes[name])
    weighed = ", ".join(f"{weights[name]} {name}" for name in reversed(SEVERITIES) if weights[name])
    against = [f"{weights.total()} do not hold, by severity: {weighed}"] if weights else []
    return "\n".join([*lines, "", f"{len(verdicts)} claims: {tally}", *against])
