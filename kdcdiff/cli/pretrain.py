"""`kdcdiff pretrain`: train the shipped small stack again, from nothing."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from kdcdiff.cli import arguments
from kdcdiff.training.pretrain import Recipe, pretrain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("artifacts/assets"), help="folder of the result (default: %(default)s)")
    work = "checkpoints and logs; the same command goes on from them (default: %(default)s)"
    add("--work", type=Path, default=Path("artifacts/pretrain"), help=work)
    for field in fields(Recipe):
        kind = arguments.whole(0 if field.name == "seed" else 1) if isinstance(field.default, int) else arguments.weight
        option = f"--{field.name.replace('_', '-')}"
        add(option, type=kind, default=field.default, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    pretrain(args.work, args.out, Recipe(**{f.name: getattr(args, f.name) for f in fields(Recipe)}))
    print(f"the small stack is in {args.out}; copy it over kdcdiff/assets to ship it")
    return 0
