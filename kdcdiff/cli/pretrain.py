"""`kdcdiff pretrain`: train the shipped small stack again, from nothing."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from kdcdiff.cli import arguments
from kdcdiff.training.protocols import Recipe

SHARES = {"ema": arguments.decay, "caption_dropout": arguments.fraction}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("artifacts/assets"), help="folder of the result (default: %(default)s)")
    work = "checkpoints and logs; the same command goes on from them (default: %(default)s)"
    add("--work", type=Path, default=Path("artifacts/pretrain"), help=work)
    arguments.add_device(parser)
    for field in fields(Recipe):
        number = arguments.whole(0 if field.name == "seed" else 1) if field.type == "int" else arguments.weight
        option = f"--{field.name.replace('_', '-')}"
        add(option, type=SHARES.get(field.name, number), default=field.default, help="(default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from kdcdiff.training.pretrain import pretrain

    recipe = Recipe(**{f.name: getattr(args, f.name) for f in fields(Recipe)})
    pretrain(args.work, args.out, recipe, arguments.device_of(args))
    print(f"the small stack is in {args.out}; copy it over kdcdiff/assets to ship it")
    return 0
