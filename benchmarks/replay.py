"""The replay buffer: many Stable-Diffusion latents on disk in little memory, and its share of a training step.

python benchmarks/replay.py                        # 1,000,000 x 4x64x64 fp16: needs 33 GB of disk for a while
python benchmarks/replay.py --latents 100000
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from kdcdiff.data.latents import add_noise
from kdcdiff.models.pipeline import load_pipeline
from kdcdiff.training.losses import denoising_loss
from kdcdiff.training.replay import LatentReplayBuffer


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def median(call, n: int) -> float:
    """Median seconds of `call`, warm."""
    call()
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fill(buffer: LatentReplayBuffer, latents: int, classes: int) -> None:
    """Classes of equal size, one after another, none of them ever whole in memory with another."""
    each = latents // classes
    pattern = torch.randn(1, 4, 64, 64).half()
    for k in range(classes):
        rows = pattern.expand(each, -1, -1, -1)  # a view: the buffer's own memory is what is measured
        buffer.add_class(str(k), rows, [f"a picture of {k}"] * each)


def on_disk(latents: int, classes: int, folder: Path) -> None:
    before = peak_mib()
    buffer = LatentReplayBuffer(latents, "ring", disk=folder / "rows")
    start = time.perf_counter()
    fill(buffer, latents, classes)
    seconds = time.perf_counter() - start
    print(f"filled {len(buffer):,} latents, {buffer.nbytes / 2**30:.1f} GiB on disk, in {seconds:.0f} s")
    seconds = median(lambda: buffer.sample(64, 7), 50)
    print(f"a batch of 64: {1e3 * seconds:.2f} ms")
    print(f"peak memory of the process: {peak_mib():.0f} MiB, {before:.0f} MiB of them Python and the libraries")


def by_size() -> None:
    print("\na batch of 32 from memory, small latents (8x8x8):")
    for size in (1_000, 10_000, 100_000):
        buffer = LatentReplayBuffer(size)
        buffer.add_class("a", torch.zeros(1, 8, 8, 8).expand(size, -1, -1, -1), ["a"] * size)
        print(f"  of {size:>7,}: {1e3 * median(lambda b=buffer: b.sample(32, 3), 200):.3f} ms")


def share_of_a_step() -> None:
    """Sampling and collating beside one optimizer step of the small U-Net."""
    pipeline = load_pipeline("flora")
    unet, scheduler = pipeline.unet.train().requires_grad_(True), pipeline.scheduler
    buffer = LatentReplayBuffer(128)
    prompt = torch.randn(pipeline.unet.config.cross_attention_dim).expand(32, -1)
    buffer.add_class("a", torch.randn(128, 8, 8, 8), ["a"] * 128, {"a": prompt})
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        old = buffer.sample(32, 3)
        data = add_noise(old.latents, old.prompts, scheduler, torch.Generator().manual_seed(0))
        denoising_loss(unet(data.noisy, data.timestep, data.prompt).sample, data.target).backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, part = 1e3 * median(step, 15), 1e3 * median(lambda: buffer.sample(32, 3), 200)
    print(f"\nsampling and collating 32: {part:.2f} ms beside a step of {whole:.0f} ms, {100 * part / whole:.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=None, help="where the file goes (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        on_disk(args.latents, args.classes, Path(folder))
    by_size()
    share_of_a_step()


if __name__ == "__main__":
    main()
