"""`kdcdiff shrink`: cut a teacher down to a student."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcdiff.cli import arguments
from kdcdiff.errors import check
from kdcdiff.models.shipped import UNETS
from kdcdiff.models.variants import VARIANTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("teacher", type=arguments.unet, help=UNETS)
    variants = f"{', '.join(VARIANTS)}, or a JSON file with a variant's fields"
    add("--variant", type=arguments.variant, required=True, help=variants)
    add("--out", type=Path, help="the new folder")
    add("--pipeline", type=arguments.pipeline, help="a pipeline to take everything but the U-Net's weights from")
    add("--map", action="store_true", help="print which teacher tensor each student tensor is, and stop")


def run(args: argparse.Namespace) -> int:
    check(args.map or args.out is not None, "out", None, "name a new folder with --out")

    from kdcdiff.models import surgery, unet_files
    from kdcdiff.models.export import save_student

    checkpoint = unet_files.open_unet(args.teacher, args.pipeline)
    if args.map:
        for name, source in surgery.weight_map(checkpoint.config, args.variant).items():
            print(f"{name} <- {source}")
        return 0
    student = save_student(checkpoint, args.variant, args.out)
    before = sum(s.numel() for s in surgery.parameter_shapes(checkpoint.config).values())
    after = sum(p.numel() for p in student.parameters())
    what = "pipeline" if checkpoint.pipeline is not None else "U-Net alone (the teacher is no whole pipeline)"
    print(f"{args.out}: {args.variant.name}, a {what}; U-Net parameters {before:,} -> {after:,} ({after / before:.1%})")
    return 0
