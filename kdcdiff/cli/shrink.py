"""`kdcdiff shrink`: cut a teacher down to a student."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcdiff.errors import check
from kdcdiff.models import surgery, unet_files
from kdcdiff.models.export import save_student
from kdcdiff.models.variants import VARIANTS, variant


def run(args: argparse.Namespace) -> int:
    """``kdcdiff shrink``."""
    cut = variant(args.variant)
    checkpoint = unet_files.open_unet(args.teacher, args.pipeline)
    if args.map:
        for name, source in surgery.weight_map(checkpoint.config, cut).items():
            print(f"{name} <- {source}")
        return 0
    check(args.out is not None, "out", None, "name a new folder with --out")
    student = save_student(checkpoint, cut, Path(args.out))
    before = sum(s.numel() for s in surgery.parameter_shapes(checkpoint.config).values())
    after = sum(p.numel() for p in student.parameters())
    what = "pipeline" if checkpoint.pipeline is not None else "U-Net alone (the teacher is no whole pipeline)"
    print(f"{args.out}: {cut.name}, a {what}; U-Net parameters {before:,} -> {after:,} ({after / before:.1%})")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("teacher", help=unet_files.SOURCES)
    parser.add_argument(
        "--variant", required=True, help=f"{', '.join(VARIANTS)}, or a JSON file with a variant's fields"
    )
    parser.add_argument("--out", help="the new folder")
    parser.add_argument("--pipeline", help="a pipeline folder to take everything but the U-Net's weights from")
    parser.add_argument(
        "--map", action="store_true", help="print which teacher tensor each student tensor is, and stop"
    )
