"""`kdcdiff generate`: pictures from any pipeline, in a folder with their table."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcdiff.cli import arguments
from kdcdiff.cli.arguments import whole
from kdcdiff.models.shipped import PIPELINES
from kdcdiff.sampling.prompts import read_prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pipeline", type=arguments.pipeline, help=PIPELINES)
    prompts = "prompts, or files of them: .txt (one a line), .csv (columns text and, if you like, class), or .json "
    prompts += "(captions of MS-COCO, one each of 30,000 images)"
    add("--prompts", nargs="+", required=True, metavar="PROMPT", help=prompts)
    add("--per-prompt", type=whole(1), default=1, help="pictures of each prompt (default: %(default)s)")
    out = "folder of the pictures and their metadata.csv; a killed command goes on in it when it is given again"
    add("--out", type=Path, required=True, help=out)
    add("--seed", type=arguments.seed, default=0, help="default: %(default)s")
    add("--steps", type=whole(1), default=25, help="denoising steps (default: %(default)s)")
    guidance = "scale of classifier-free guidance; up to 1 there is none (default: %(default)s)"
    add("--guidance", type=arguments.weight, default=5.0, help=guidance)
    add("--scheduler", help="a diffusers scheduler, such as DPMSolverMultistep (default: the pipeline's own)")
    add("--negative-prompt", help="what the pictures are guided away from")
    arguments.add_resolution(parser, "the pictures", "what the pipeline was trained on")
    add("--batch-size", type=whole(1), help="pictures at a time (default: as memory allows, 50 at most)")
    arguments.add_device(parser)


def run(args: argparse.Namespace) -> int:
    asked = [prompt for prompt in read_prompts(args.prompts) for _ in range(args.per_prompt)]

    from kdcdiff.models.pipeline import load_pipeline
    from kdcdiff.sampling.folder import generate_to_folder

    device = arguments.device_of(args)
    drawn = generate_to_folder(
        load_pipeline(args.pipeline).to(device),
        [text for text, _ in asked],
        args.out,
        classes=[name for _, name in asked],
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        scheduler=args.scheduler,
        negative_prompt=args.negative_prompt,
        batch_size=args.batch_size,
        resolution=args.resolution,
    )
    print(f"{len(asked)} pictures in {args.out}, {drawn} of them drawn now on {device}")
    return 0
