"""A distillation step beside a faithful loop of BK-SDM's published recipe: same models, batch and dtype, in one run.

The reference does in every step what the recipe does: encode the images, encode the captions, teacher forward, student
forward and backward with features from hooks, and read every loss value. Ours reads cached latents and embeddings.

    python benchmarks/distill.py                 # the small stack, batch 32, float32 and bfloat16
    python benchmarks/distill.py --size sd       # SD-1.5's sizes with seeded random weights at 512x512, batch 1
    python benchmarks/distill.py --memory        # peak memory of each, in processes of their own
    python benchmarks/distill.py --table 16x64 32x64 16x128   # ours: batch x side against memory, by dtype
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from kdcdiff.data.latents import LatentSet, add_noise
from kdcdiff.models import surgery
from kdcdiff.models.feature_hooks import Taps
from kdcdiff.models.pipeline import SCHEDULER, load_pipeline
from kdcdiff.training.losses import BKSDMLoss, KDCLoss

VAE = {  # Stable Diffusion 1.5's
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "sample_size": 512,
}  # fmt: skip
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
UNET = {"sample_size": 64, "cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)}


class Setup:
    """Both loops' models and inputs, in one dtype, on one device; what is cached stays in the CPU's memory."""

    def __init__(self, size: str, dtype: torch.dtype, batch: int, side: int, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        if size == "sd":
            self.vae, self.teacher = AutoencoderKL(**VAE), UNet2DConditionModel(**UNET)
            self.text, tokens = CLIPTextModel(CLIPTextConfig(**TEXT)), 77
        else:
            pipeline = load_pipeline("flora")
            self.vae, self.teacher, self.text = pipeline.vae, pipeline.unet, pipeline.text_encoder
            tokens = self.text.config.max_position_embeddings
        self.student = surgery.shrink(self.teacher, "kdc-described")
        for module in (self.vae, self.teacher, self.text):
            module.to(self.device, dtype).eval().requires_grad_(False)
        self.student.to(self.device).requires_grad_(True).train()
        for unet in (self.teacher, self.student):
            unet.to(memory_format=torch.channels_last)  # for both loops: the recipe itself leaves it out
        self.dtype, self.batch, self.scheduler = dtype, batch, DDIMScheduler(**SCHEDULER)
        self.pixels = torch.randn(batch, 3, side, side)
        self.ids = torch.randint(0, self.text.config.vocab_size, (batch, tokens))
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5, fused=True)
        with torch.no_grad():
            dist = self.vae.encode(self.pixels.to(self.device, dtype)).latent_dist
            prompts = self.text(self.ids.to(self.device))[0].float().cpu()
        self.cache = LatentSet(
            dist.mean.float().cpu(), dist.std.float().cpu(), torch.zeros(batch, dtype=torch.long), torch.arange(batch),
            prompts, tuple(map(str, range(batch))), ("x",),
        )  # fmt: skip

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        on = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if on else contextlib.nullcontext()


def reference(s: Setup) -> Callable[[], None]:
    """BK-SDM's recipe, step by step."""
    taps = Taps(s.student, s.teacher).__enter__()  # stays for the whole measurement, as a run's hooks would

    def step() -> None:
        with s.autocast():
            with torch.no_grad():
                latents = s.vae.encode(s.pixels.to(s.device, s.dtype)).latent_dist.sample() * 0.18215
                prompts = s.text(s.ids.to(s.device))[0]
            noise, t = torch.randn_like(latents), torch.randint(0, 1000, (s.batch,), device=s.device)
            noisy = s.scheduler.add_noise(latents, noise, t)
            with torch.no_grad():
                wanted = s.teacher(noisy, t, prompts).sample
            made = s.student(noisy, t, prompts).sample
            mine, theirs = taps.pop()
            task, output = F.mse_loss(made.float(), noise.float()), F.mse_loss(made.float(), wanted.float())
            feature = sum(F.mse_loss(a.float(), b.float()) for a, b in zip(mine, theirs, strict=True))
            loss = task + output + feature
        loss.backward()
        torch.nn.utils.clip_grad_norm_(s.student.parameters(), 1.0)
        s.optimizer.step()
        s.optimizer.zero_grad()
        [value.item() for value in (task, output, feature, loss)]

    return step


def ours(s: Setup, objective: BKSDMLoss | KDCLoss) -> Callable[[], None]:
    """A step as `kdcdiff.training.distill` takes it, on the cache."""
    taps = Taps(s.student, s.teacher).__enter__()
    rows, generator = torch.arange(s.batch), torch.Generator().manual_seed(0)

    def step() -> None:
        data = add_noise(s.cache.sample(rows, generator), s.cache.prompts[rows], s.scheduler, generator)
        data = data.to(s.device, non_blocking=True)
        with s.autocast():
            with torch.no_grad():
                wanted = s.teacher(data.noisy.to(s.dtype), data.timestep, data.prompt.to(s.dtype)).sample
            made = s.student(data.noisy, data.timestep, data.prompt).sample
            mine, theirs = taps.pop()
            loss, _ = objective(
                student=made, teacher=wanted, target=data.target, student_features=mine, teacher_features=theirs
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(s.student.parameters(), 1.0)
        s.optimizer.step()
        s.optimizer.zero_grad(set_to_none=True)

    return step


def bare(s: Setup) -> Callable[[], None]:
    """Only what no loop can leave out: the two forwards and the backward."""
    noisy = s.cache.mean.to(s.device).contiguous(memory_format=torch.channels_last)
    t, prompts = torch.randint(0, 1000, (s.batch,), device=s.device), s.cache.prompts.to(s.device)

    def step() -> None:
        with s.autocast():
            with torch.no_grad():
                s.teacher(noisy.to(s.dtype), t, prompts.to(s.dtype))
            out = s.student(noisy, t, prompts).sample
        out.float().square().mean().backward()
        s.student.zero_grad(set_to_none=True)

    return step


LOOPS: dict[str, Callable[[Setup], Callable[[], None]]] = {
    "reference": reference,
    "ours, BK-SDM's loss": lambda s: ours(s, BKSDMLoss()),
    "ours, equation (6)": lambda s: ours(s, KDCLoss()),
    "bare forwards and backward": bare,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(size: str, dtype: str, batch: int, side: int, rounds: int) -> dict[str, float]:
    """Median seconds a step of each loop; the loops share the models and take turns, so a slow moment hits all."""
    setup = Setup(size, DTYPES[dtype], batch, side)
    steps = {name: make(setup) for name, make in LOOPS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak(size: str, dtype: str, batch: int, side: int, loop: str) -> None:
    """One loop alone, for its peak memory; ours never holds the autoencoder and the text encoder while it trains."""
    setup = Setup(size, DTYPES[dtype], batch, side)
    if loop != "reference":
        del setup.vae, setup.text
    step = LOOPS[loop](setup)
    for _ in range(2):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def peak_of(size: str, dtype: str, batch: int, side: int, loop: str) -> float:
    """`peak` in a process of its own, in GiB; infinite where the machine has not enough."""
    words = [sys.executable, __file__, "--size", size, "--batch", str(batch), "--side", str(side), "--dtypes", dtype]
    done = subprocess.run([*words, "--peak-of", loop], capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "sd"), default="small")
    parser.add_argument("--batch", type=int, help="(32; at sd 1)")
    parser.add_argument("--rounds", type=int, help="(15; at sd 3)")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--side", type=int, help="of the images, in pixels (64; at sd 512)")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--table", nargs="+", metavar="BATCHxSIDE")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    batch = args.batch or (1 if args.size == "sd" else 32)
    side = args.side or (512 if args.size == "sd" else 64)
    if args.peak_of:
        peak(args.size, args.dtypes[0], batch, side, args.peak_of)
        return
    for word in args.table or ():
        batch, side = map(int, word.split("x"))
        found = {dtype: peak_of(args.size, dtype, batch, side, "ours, equation (6)") for dtype in args.dtypes}
        cells = ", ".join(f"{dtype} {gib:.2f} GiB" for dtype, gib in found.items())
        print(f"batch {batch:>3} at {side}x{side}: peak {cells}", flush=True)
    if args.memory:
        for dtype in args.dtypes:
            for loop in list(LOOPS)[:2]:
                print(f"{dtype:<9} {loop:<28} peak {peak_of(args.size, dtype, batch, side, loop):.2f} GiB", flush=True)
    if args.memory or args.table:
        return
    first = None
    for dtype in args.dtypes:
        medians = measure(args.size, dtype, batch, side, args.rounds or (3 if args.size == "sd" else 15))
        first = first or medians["reference"]
        for name, seconds in medians.items():
            own, other = medians["reference"] / seconds, first / seconds
            print(
                f"{dtype:<9} {name:<28} {1e3 * seconds:>9.0f} ms   {own:.2f} x the reference's speed, {other:.2f} x in "
                f"{args.dtypes[0]}"
            )


if __name__ == "__main__":
    main()
