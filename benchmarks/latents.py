"""The latents cache at a million rows: memory, rows a second, bytes a row, and the time to go on after a kill.

    python benchmarks/latents.py                      # 1,000,000 rows, 3 GB of disk for a while, minutes of CPU
    python benchmarks/latents.py --rows 50000 --out results.json

Latents and prompts are generated and of reduced width, for encoding is not what is measured: `write_shards`, `finish`
and `ShardedLatents` are the library's. Every measurement is a process of its own, of one thread. Beside them: what
listing a tar shard and decoding a picture cost, and what one picture costs both encoders at Stable Diffusion 1.5's
size, which is what a large set's hours are made of.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kdcdiff.data import latents
from kdcdiff.data.listing import Listed, list_pictures, read_picture
from kdcdiff.data.shards import Encoded, ShardedLatents, finish, write_shards
from kdcdiff.provenance import provenance

ROWS, SHARD, PART = 1_000_000, 1024, 10_000  # a part is what a tar of img2dataset holds
LATENT, PROMPT = (4, 8, 8), (8, 16)
BATCHES, BATCH = 50, 256
FORK = multiprocessing.get_context("fork")  # the libraries are imported once
NOWHERE = Path()
SETTINGS: dict[str, Any] = {"origin": ("generated", 1.0), "size": 64}


class Generated:
    """So many pictures in parts, as tars would have them; nothing of them is read."""

    rows, classes = SHARD, ()

    def __init__(self, count: int) -> None:
        self.count, self.digest = count, f"generated {count}"

    def __len__(self) -> int:
        return -(-self.count // PART)

    def part(self, number: int) -> Iterator[Listed]:
        for i in range(number * PART, min(self.count, (number + 1) * PART)):
            yield Listed(NOWHERE, str(i), f"picture number {i}")


def pattern() -> dict[str, torch.Tensor]:
    """A shard's numbers, which every shard has, turned by as many rows as it has shards before it."""
    shapes = {"mean": LATENT, "std": LATENT, "prompts": PROMPT}
    return {name: torch.randn(SHARD, *shape).half() for name, shape in shapes.items()}


def generate(made: dict[str, torch.Tensor], chunk: Sequence[Listed]) -> Encoded:
    """Stand in for both encoders; every caption is another one."""
    rows, turn = len(chunk), int(chunk[0].name) // SHARD
    half = {name: value.roll(turn, 0)[:rows] for name, value in made.items()} | {"empty": torch.zeros(PROMPT).half()}
    return Encoded(half | {"labels": torch.full((rows,), -1), "captions": torch.arange(rows)}, [])


def peak() -> int:
    """Peak resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds that a call takes by the clock, and of the processor's time."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}


# --- what a process of its own measures ------------------------------------------------------------------------


def write(count: int, folder: Path, rank: int, world: int) -> dict[str, float]:
    """Write every `world`-th part; peak memory before the first shard, after a tenth of them, and at the end."""
    before, peaks, made = peak(), [], pattern()

    def encoder(chunk: Sequence[Listed]) -> Encoded:
        peaks.append(peak())
        return generate(made, chunk)

    found = timed(lambda: write_shards(Generated(count), encoder, folder, SETTINGS, rank, world))
    return found | {"peak": peak(), "peak_at_a_tenth": peaks[len(peaks) // 10], "libraries": before}


def resume(count: int, folder: Path) -> dict[str, float]:
    """Go on with a cache whose middle shard was lost: everything is held to its checksum, and one is made."""
    made, encoder = [], partial(generate, pattern())
    lost = sorted(folder.glob("shard-*.safetensors"))
    lost[len(lost) // 2].unlink()
    found = timed(lambda: made.append(write_shards(Generated(count), encoder, folder, SETTINGS)))
    assert made == [1]
    return found | {"index_seconds": timed(lambda: finish(folder))["seconds"], "peak": peak()}


def draw(folder: Path) -> dict[str, Any]:
    """Draw batches from seed and step over the whole cache."""
    cache, before = ShardedLatents(folder), peak()

    def batches() -> None:
        for step in range(BATCHES):
            generator = torch.Generator().manual_seed(step)
            rows = latents.draw_rows(BATCH, len(cache), generator)
            cache.sample(rows, generator)
            cache.prompts_of(rows, torch.ones(BATCH, dtype=torch.bool))

    return timed(batches) | {"rows": BATCHES * BATCH, "peak": peak(), "before": before}


def read(folder: Path) -> dict[str, float]:
    """List the samples of a tar, and decode photographs of 512 pixels: seconds of the processor for each."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i in range(4 * PART // 10):
            members = {
                "jpg": stream.getvalue() if i < 200 else b"",
                "txt": b"a photo",
                "json": b'{"status": "success"}',
            }
            for kind, content in members.items():
                info = tarfile.TarInfo(f"{i:09d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    pictures: list[Listed] = []
    listing = timed(lambda: pictures.extend(list_pictures(folder, SHARD).part(0)))["cpu_seconds"] / (4 * PART // 10)
    decoding = timed(lambda: [read_picture(one, 512) for one in pictures[:200]])["cpu_seconds"] / 200
    return {"listing": listing, "decoding": decoding, "jpeg_bytes": len(stream.getvalue())}


def encode() -> dict[str, float]:
    """Encode one picture and one caption by networks of Stable Diffusion 1.5's size, random weights, one thread."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    text, tokens = CLIPTextModel(config).eval(), torch.randint(1000, (1, 77))
    picture = torch.randint(256, (1, 3, 512, 512), dtype=torch.uint8)
    made: list[torch.Tensor] = []
    with torch.no_grad():
        words = timed(lambda: made.append(text(tokens)[0]))["cpu_seconds"]
        pixels = timed(lambda: made.extend(latents.encode(vae, picture)))["cpu_seconds"]
    return {"autoencoder": pixels, "text_encoder": words, "peak": peak(), "bytes": sum(2 * t.numel() for t in made)}


# --- the whole -------------------------------------------------------------------------------------------------


def start(call: Callable[..., dict[str, Any]], *words: object) -> Callable[[], dict[str, Any]]:
    """Start a measurement in a process of its own, forked from this small one; return what waits for its result."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: there.send(call(*words)))
    process.start()
    there.close()

    def result() -> dict[str, Any]:
        found = here.recv()  # EOFError: it failed, and has said how
        process.join()
        print(f"{call.__name__} {words[:1]}: {found}", file=sys.stderr, flush=True)
        return found

    return result


def measure(count: int, folder: Path) -> dict[str, Any]:
    """All measurements; the writers side by side, so that what slows one slows the other."""
    one, two, tar = folder / "one", folder / "two", folder / "tar"
    tar.mkdir()
    found: dict[str, Any] = {"rows": count, "latent": LATENT, "prompt": PROMPT, "shard": SHARD, "part": PART}
    alone, both = start(write, count, one, 0, 1), [start(write, count, two, rank, 2) for rank in range(2)]
    reading, encoding = start(read, tar), start(encode)
    found["read"], found["encode, SD 1.5 at 512"] = reading(), encoding()
    found["two processes"] = [result() for result in both]
    found["one process"] = alone()
    found["resume"] = start(resume, count, one)()
    finish(two)
    sizes = {path.name: path.stat().st_size for path in one.iterdir()}
    notes = [name for name in sizes if name.endswith(".json")]  # which have the sha256 of their shards
    found["one and two made the same"] = all((one / n).read_bytes() == (two / n).read_bytes() for n in notes)
    found |= {"bytes_a_row": sum(sizes.values()) / count, "files": len(sizes)}
    found["draw"] = start(draw, one)()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--folder", type=Path, help="where the caches go (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="a file for the figures and where they come from, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args.rows, Path(folder))
    machine = {"cores": len(os.sched_getaffinity(0)), "load_before": load, "load_after": os.getloadavg()[0]}
    text = json.dumps({"benchmark": "benchmarks/latents.py", **found, "machine": machine, **provenance()}, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
