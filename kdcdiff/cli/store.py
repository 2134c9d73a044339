"""`kdcdiff store`: what lies in the store, whether it is whole, what may go, and what another store has."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from kdcdiff.errors import check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        own = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        own.add_argument("--artifacts", type=Path, default="artifacts", help="its folder (default: %(default)s)")
        return own

    recorded = "what the chapters have read (default: %(default)s)"
    for name, summary in (
        ("ls", "list what lies there: stage, key, size, age, and the chapters that read it"),
        (
            "gc",
            "list what no chapter has read, damaged ones and what killed processes left; or remove it",
        ),
    ):
        own = action(name, summary)
        own.add_argument("--results", type=Path, default="_build/results.json", metavar="FILE", help=recorded)
    own.add_argument("--unfinished", action="store_true", help="checkpoints of trainings that never ended, too")
    own.add_argument("--delete", action="store_true", help="remove it (default: only list it)")
    action("verify", "read every byte, and compare it with its manifest; 1 where something is damaged")
    own = action("pull", "take the artifacts of another store, each checked before it appears in this one")
    own.add_argument("source", help="its folder, or a URL that fsspec opens, such as s3://bucket/artifacts")
    own.add_argument("--stage", action="append", default=[], help="only this stage's; may be repeated")


def run(args: argparse.Namespace) -> int:
    return {"ls": _ls, "verify": _verify, "gc": _gc, "pull": _pull}[args.action](args)


def _ls(args: argparse.Namespace) -> int:
    from kdcdiff.book.results import Results
    from kdcdiff.book.tables import table
    from kdcdiff.upkeep import STATES, entries

    readers = {stage["key"]: ", ".join(stage["chapters"]) for stage in Results(args.results).stages()}
    rows = []
    for entry in entries(args.artifacts.expanduser()):
        about = entry.manifest
        rows.append(
            {
                "artifact": entry.name,
                "state": entry.state,
                "MiB": entry.bytes / 2**20,
                "seconds": about.get("seconds"),
                "made (UTC)": about.get("created", "")[:16].replace("T", " "),
                "read in": readers.get(about.get("key"), "") or entry.fault,
            }
        )
    print(table(rows, formats={"MiB": ",.1f", "seconds": ",.1f"}) if rows else "nothing yet")
    for state in sorted({row["state"] for row in rows} - {"published"}):
        print(f"{state}: {STATES[state]}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from kdcdiff.upkeep import entries

    published = [e for e in entries(args.artifacts.expanduser(), hashed=True) if e.state in ("published", "damaged")]
    damaged = [entry for entry in published if entry.fault]
    for entry in damaged:
        print(f"damaged: {entry.name}: {entry.fault}")
    print(f"{len(published)} artifacts, {len(damaged)} of them damaged")
    return 1 if damaged else 0


def _gc(args: argparse.Namespace) -> int:
    from kdcdiff.book.results import Results
    from kdcdiff.store import Store
    from kdcdiff.upkeep import entries, remove, unneeded

    root = args.artifacts.expanduser()
    next(entries(root), None)  # refuses a folder that is no store, which opening it would make one
    told = "no chapter is recorded there, so that nothing would be kept; name the results of the book"
    check(bool(Results(args.results).stages()), "results", str(args.results), told)
    store, freed = Store(root), 0
    with store.alone() if args.delete else contextlib.nullcontext():
        needed = [stage["key"] for stage in Results(args.results).stages()]  # none is added from here on
        for entry in unneeded(store, needed, args.unfinished):
            size = entry.bytes
            freed += size
            if args.delete:
                remove(store, entry)
            print(f"{'removed' if args.delete else 'may go'} {entry.name}  {entry.state}, {size / 2**20:,.1f} MiB")
    print(f"{freed / 2**20:,.1f} MiB {'removed' if args.delete else 'to be had; --delete removes it'}")
    return 0


def _pull(args: argparse.Namespace) -> int:
    from kdcdiff.upkeep import pull

    came, here = pull(args.artifacts, args.source, args.stage)
    print(f"{came} artifacts pulled, {here} were here")
    return 0
