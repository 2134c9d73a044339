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
    data = "class folders, a folder with captions in metadata.csv, .jsonl or .parquet, or one of WebDataset tars"
    add("--data", type=arguments.folder, required=True, help=data)
    out = "folder of the cache; a killed command goes on in it when it is given again"
    add("--out", type=Path, required=True, help=out)
    arguments.add_resolution(parser, "the pictures, centre squares", "what the teacher was trained on")
    add("--shard", type=whole(1), default=1024, metavar="ROWS", help="pictures of a shard (default: %(default)s)")
    share = "encode the third of 16 shares, as one job of many; the last to end writes the index (default: all)"
    add("--share", type=_share, default=(1, 1), metavar="3/16", help=share)
    arguments.add_device(parser)


@arguments.refusing
def _share(text: str) -> tuple[int, int]:
    """Take which of how many shares, as ``3/16``."""
    first, _, count = text.partition("/")
    ok = all(word.isdecimal() and len(word) < 7 for word in (first, count)) and 1 <= int(first) <= int(count)
    check(ok, "share", text, "must be one of so many, as 3/16")
    return int(first), int(count)


def run(args: argparse.Namespace) -> int:
    from accelerate import PartialState

    from kdcdiff.data.listing import list_pictures
    from kdcdiff.data.shards import encode_shards, finish, unfinished
    from kdcdiff.models.pipeline import image_size, load_pipeline

    pictures = list_pictures(args.data.expanduser().resolve(), args.shard)
    process = PartialState(cpu=arguments.device_of(args) == "cpu")  # one for each GPU under accelerate launch
    pipeline = load_pipeline(args.teacher).to(process.device)
    size, whole = args.resolution or image_size(pipeline), 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    check(size % whole == 0, "resolution", size, f"must be a multiple of {whole}")
    own, shares = args.share
    encode_shards(
        pipeline, pictures, args.out, size=size,
        rank=(own - 1) * process.num_processes + process.process_index, world=shares * process.num_processes,
        progress=process.is_main_process,
    )  # fmt: skip
    process.wait_for_everyone()
    if process.is_main_process:
        if shares > 1 and (part := unfinished(args.out)) is not None:
            print(f"share {own} of {shares} is done; part {part}, of another share, is still to come")
            return 0
        index = finish(args.out)
        rows = [n for part in index["rows"] for n in part]
        left = f"; left out: {index['left_out']} ({index['first_left_out']})" if index["left_out"] else ""
        print(f"{sum(rows):,} pictures in {len(rows)} shards in {args.out}{left}")
    return 0
