"""`kdcdiff run`: execute the chapters."""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kdcdiff.cli import arguments
from kdcdiff.errors import check
from kdcdiff.experiments import profiles

if TYPE_CHECKING:
    from kdcdiff.book.toc import Book


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    profile = arguments.refusing(lambda name: profiles.get(name).name)
    add("--profile", type=profile, default="mini", help=f"{', '.join(profiles.PROFILES)} (default: %(default)s)")
    add("--dataset", type=arguments.dataset, default="flora", help=f"{arguments.DATASETS} (default: %(default)s)")
    add("--seed", type=arguments.seed, default=0, help="default: %(default)s")
    arguments.add_device(parser)
    add("--artifacts", default="artifacts", help="the store's folder (default: %(default)s)")
    add("--only", action="append", metavar="CHAPTER", help="a chapter to run, e.g. surgery; may be repeated")
    own = "a notebook parameter, for every chapter that has it; may be repeated"
    add("-p", dest="own", nargs=2, action="append", metavar=("NAME", "VALUE"), default=[], help=own)
    add("--timeout", type=arguments.positive, help="seconds that one cell may take (default: four hours)")
    add("--force", action="store_true", help="run chapters that are up to date as well")
    add("--save-outputs", action="store_true", help="write the outputs back into the notebooks that were run")
    queue = "file that says where independent stages run, such as book/executors/slurm.yaml (default: this machine)"
    add("--executor", type=Path, metavar="FILE", help=queue)
    dry = "print what the run would make, fetch, weigh and take, and do nothing"
    add("--dry-run", action="store_true", help=dry)
    add("--root", default=".", help="the book's folder (default: the working folder)")


def run(args: argparse.Namespace) -> int:
    from kdcdiff.book import notebook as notebooks
    from kdcdiff.book import runner
    from kdcdiff.book.costs import chapter_costs, stage_costs, stage_table
    from kdcdiff.book.staging import save_outputs
    from kdcdiff.book.toc import Book
    from kdcdiff.experiments.executors import use_executor
    from kdcdiff.store import write_atomically

    book = Book(Path(args.root).resolve())
    for name, _ in args.own:
        check(name not in notebooks.STANDARD, "-p", name, f"use --{name}")
    if args.dry_run:
        print(_planned(args, book))
        return 0
    arguments.device_of(args)  # the kernels see it as well
    if args.executor:
        use_executor(args.executor)
    start = time.perf_counter()
    try:
        executed = runner.run(
            book.root,
            profile=args.profile,
            dataset=args.dataset,
            seed=args.seed,
            artifacts=args.artifacts,
            only=args.only,
            own=dict(args.own),
            timeout=args.timeout or runner.CELL_TIMEOUT,
            force=args.force,
        )
    except runner.ChapterFailed as failure:
        print(f"failed: {failure}\nits executed copy is in {book.staged}", file=sys.stderr)
        return 1
    if args.save_outputs:
        save_outputs(book, args.only)
        print("the notebooks now hold these outputs")
    spent = {"chapters": chapter_costs(book), "stages": stage_costs(book)}
    write_atomically(book.build / "costs.json", json.dumps(spent, indent=1) + "\n")
    print(stage_table(spent["stages"]))
    print(
        f"{len(executed)} chapters executed in {time.perf_counter() - start:,.0f} s, the rest up to date; "
        f"executed copies: {book.staged}"
    )
    return 0


def _planned(args: argparse.Namespace, book: Book) -> str:
    """Lay out what the run would make. UserError: a parameter that is no size of the profile's."""
    from kdcdiff.experiments.plan import plan_run
    from kdcdiff.process import use_device

    sizes = profiles.get(args.profile, **{name: _literal(value) for name, value in args.own})
    rates = json.loads((book.root / "book" / "results" / "rates.json").read_text(encoding="utf-8"))
    device = args.device or use_device()  # a GPU may be planned for where there is none
    return plan_run(sizes, args.dataset, seed=args.seed, device=device, rates=rates).report()


def _literal(text: str) -> object:
    """Read a number, a list or None as Python writes them; anything else is a word."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
