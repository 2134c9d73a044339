"""`kdcdiff pretrain`: train the shipped small stack again, from nothing."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from kdcdiff.cli import arguments
from kdcdiff.training.protocols import RECIPES, Recipe

NUMBERS = [field for field in fields(Recipe) if field.type in ("int", "float")]  # what an option may change
OPTIONAL = ("perceptual_net_steps",)  # left out at 0, as what is 0 by itself
LIMITED = {"ema": arguments.decay, "caption_dropout": arguments.fraction}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("artifacts/assets"), help="folder of the result (default: %(default)s)")
    work = "checkpoints and logs; the same command goes on from them (default: %(default)s)"
    add("--work", type=Path, default=Path("artifacts/pretrain"), help=work)
    arguments.add_device(parser)
    named = arguments.one_of(*RECIPES)
    add("--recipe", type=named, default="flora", help=f"{' or '.join(RECIPES)} (default: %(default)s)")
    for field in NUMBERS:
        least = 0 if field.name == "seed" or field.default == 0 or field.name in OPTIONAL else 1
        number = arguments.whole(least) if field.type == "int" else arguments.weight
        own = ", ".join(f"{getattr(recipe, field.name):g} of {name}" for name, recipe in RECIPES.items())
        option = f"--{field.name.replace('_', '-')}"
        add(option, type=LIMITED.get(field.name, number), help=f"(default: the recipe's, {own})")


def run(args: argparse.Namespace) -> int:
    from kdcdiff.training.pretrain import pretrain

    given = {f.name: getattr(args, f.name) for f in NUMBERS if getattr(args, f.name) is not None}
    recipe = replace(RECIPES[args.recipe], **given)
    pretrain(args.work, args.out, recipe, arguments.device_of(args))
    print(f"the small stack is in {args.out}; copy it over kdcdiff/assets/{recipe.dataset} to ship it")
    return 0
