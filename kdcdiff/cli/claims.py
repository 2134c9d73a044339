"""`kdcdiff claims`: the verdict table in a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from textwrap import shorten

from kdcdiff.book.results import Results
from kdcdiff.claims.judging import changed, judge_all, load
from kdcdiff.claims.model import PAPERS, VERDICTS, Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--paper", choices=tuple(PAPERS), help="only this paper's claims")
    add("--verdict", choices=tuple(VERDICTS), help="only claims with this verdict")
    evidence = "recorded evidence (default: %(default)s; without the file, empirical claims are not tested)"
    add("--results", type=Path, default=Path("_build/results.json"), metavar="FILE", help=evidence)
    add("--json", action="store_true", help="print JSON instead of the table")


def run(args: argparse.Namespace) -> int:
    """Print the verdicts; 1 where one differs from the record."""
    chosen = [c for c in load() if args.paper in (None, c.paper)]
    verdicts = judge_all(Results.load(args.results), chosen)
    differing = changed(verdicts)
    shown = [v for v in verdicts if args.verdict in (None, v.outcome)]
    print(json.dumps([v.as_row() for v in shown], indent=1, ensure_ascii=False) if args.json else as_text(shown))
    for verdict, before in differing:
        now = f"{verdict.claim.id} is {verdict.outcome}, on record it was {before} ({verdict.reason})"
        print(f"changed: {now}", file=sys.stderr)
    return 1 if differing else 0


def as_text(verdicts: list[Verdict]) -> str:
    """Write one line a claim, and a count per verdict below."""
    lines = [f"{v.outcome:<18} {v.claim.id:<36} {shorten(v.claim.quote, 70, placeholder=' ...')}" for v in verdicts]
    counts = Counter(v.outcome for v in verdicts)
    tally = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
    return "\n".join([*lines, "", f"{len(verdicts)} claims: {tally}" if verdicts else "no claim of that kind"])
