"""`kdcdiff encode`: pictures and captions into a latents cache on disk, shard by shard."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdcdiff.cli import arguments
from kdcdiff.cli.arguments import whole
from kdcdiff.errors import check
from kdcdiff.models.shipped import PIPELINES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--teacher", type=arguments.pipeline, required=True, help=f"whose latents: {PIPELINES}")
    data = "folder of pictures: class folders, or any with captions in metadata.csv or metadata.jsonl"
    add("--data", type=arguments.folder, required=True, help=data)
    out = "folder of the cache; a killed command goes on in it when it is given again"
    add("--out", type=Path, required=True, help=out)
    arguments.add_resolution(parser, "the pictures, centre squares", "what the teacher was trained on")
    add("--shard", type=whole(1), default=1024, metavar="ROWS", help="pictures of a shard (default: %(default)s)")
    arguments.add_device(parser)


def run(args: argparse.Namespace) -> int:
    from accelerate import PartialState

    from kdcdiff.data.shards import encode_shards, finish
    from kdcdiff.models.pipeline import image_size, load_pipeline

    process = PartialState(cpu=arguments.device_of(args) == "cpu")  # one for each GPU under accelerate launch
    pipeline = load_pipeline(args.teacher).to(process.device)
    size, whole = args.resolution or image_size(pipeline), 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    check(size % whole == 0, "resolution", size, f"must be a multiple of {whole}")
    encode_shards(
        pipeline, args.data.expanduser().resolve(), args.out, size=size, rows=args.shard,
        rank=process.process_index, world=process.num_processes, progress=process.is_main_process,
    )  # fmt: skip
    process.wait_for_everyone()
    if process.is_main_process:
        index = finish(args.out)
        left = f"; left out: {index['left_out']} ({index['first_left_out']})" if index["left_out"] else ""
        print(f"{sum(index['rows']):,} pictures in {len(index['rows'])} shards in {args.out}{left}")
    return 0
