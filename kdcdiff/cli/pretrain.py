"""`kdcdiff pretrain`: train the shipped small stack again, from nothing."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from kdcdiff.training.pretrain import Recipe, pretrain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts/assets"),
        help="folder of the result (default: %(default)s)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("artifacts/pretrain"),
        help="checkpoints and logs; the same command goes on from them",
    )
    for field in fields(Recipe):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help="(default: %(default)s)",
        )


def run(args: argparse.Namespace) -> int:
    pretrain(args.work, args.out, Recipe(**{f.name: getattr(args, f.name) for f in fields(Recipe)}))
    print(f"the small stack is in {args.out}; copy it over kdcdiff/assets to ship it")
    return 0
