"""``kdcdiff claims``: the verdict table in a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from kdcdiff.claims.judging import changed, judge_all, load
from kdcdiff.claims.model import PAPERS, VERDICTS, Evidence, Verdict
from kdcdiff.errors import UserError


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "claims",
        help="judge every claim of both papers",
        description="Judge every claim of both papers. Exit code 1 where a recorded verdict no longer holds.",
    )
    parser.add_argument("--paper", choices=tuple(PAPERS), help="only this paper's claims")
    parser.add_argument("--verdict", choices=tuple(VERDICTS), help="only claims with this verdict")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("_build/results.json"),
        metavar="FILE",
        help="recorded evidence (default: %(default)s; without the file, empirical claims are not tested)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the verdicts; 1 where one differs from the record."""
    chosen = [c for c in load() if args.paper in (None, c.paper)]
    verdicts = judge_all(read_evidence(args.results), chosen)
    differing = changed(verdicts)
    shown = [v for v in verdicts if args.verdict in (None, v.outcome)]
    if args.json:
        print(json.dumps([v.as_row() for v in shown], indent=1, ensure_ascii=False))
    else:
        print(as_text(shown))
    for verdict, before in differing:
        print(
            f"changed: {verdict.claim.id} is {verdict.outcome}, on record it was {before} ({verdict.reason})",
            file=sys.stderr,
        )
    return 1 if differing else 0


def as_text(verdicts: list[Verdict]) -> str:
    """One line a claim, and a count per verdict below."""
    lines = [f"{v.outcome:<18} {v.claim.id:<36} {shorten(v.claim.quote, 70, placeholder=' ...')}" for v in verdicts]
    counts = Counter(v.outcome for v in verdicts)
    tally = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
    return "\n".join([*lines, "", f"{len(verdicts)} claims: {tally}" if verdicts else "no claim of that kind"])


def read_evidence(path: Path) -> Mapping[str, Evidence]:
    """The recorded results as evidence; none where there is no file."""
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["results"]
        fields = tuple(Evidence.__dataclass_fields__)
        return {
            name: Evidence(name=name, **{k: v for k, v in entry.items() if k in fields and k != "name"})
            for name, entry in stored.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"results={str(path)!r}: is not a results file ({error})") from error
