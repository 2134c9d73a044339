"""Whole trainings: BK-SDM's script as its authors run it, beside ours; pictures read, losses logged, weights averaged.

    python benchmarks/bk_sdm_script.py                # the small stack, batch 32
    python benchmarks/bk_sdm_script.py --size sd      # SD-1.5's sizes with seeded random weights at 512x512, batch 1

The reference follows `src/kd_train_text_to_image.py` of https://github.com/Nota-NetsPresso/BK-SDM with the settings of
its `scripts/kd_train.sh`: PNG files through torchvision's transforms in a DataLoader, both encoders in every step,
gradient checkpointing, AdamW, an average of the weights, each loss read twice a step, for the log and for the bar.
Unlike theirs it computes in float32, as a CPU does, and accumulates nothing. Left out is what would make it slower and
says nothing of the loop: tokenizing, validation pictures, checkpoints. `distill.py` compares single steps.

Each training is a process of its own, in turns, so that a slow moment hits all; the first step of each is not counted.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from distill import Setup
from PIL import Image
from torch import Tensor
from torchvision import transforms
from tqdm.auto import tqdm

from kdcdiff.data import flora
from kdcdiff.models import surgery
from kdcdiff.training.distill import distill
from kdcdiff.training.losses import BKSDMLoss, KDCLoss

VARIANT, LR, EMA = "bk-sdm-small", 5e-5, 0.9999
STAGES = [f"{way}_blocks.{place}" for way in ("up", "down") for place in range(4)]  # whose outputs are compared
SIZES = {"small": (64, 32, 12), "sd": (512, 1, 2)}  # pixels, batch, steps that are counted


class Pictures(torch.utils.data.Dataset):
    """Drawn pictures in a folder, read and transformed one by one, with the ids of their captions."""

    def __init__(self, folder: Path, count: int, side: int, ids: Tensor) -> None:
        self.files = [folder / f"{k}.png" for k in range(count)]
        for k, file in enumerate(self.files):
            Image.fromarray(flora.draw(flora.BASE[k % len(flora.BASE)], k, size=side).image).save(file)
        steps = [transforms.Resize(side), transforms.CenterCrop(side), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
        self.ids = ids

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        picture = self.transform(Image.open(self.files[k]).convert("RGB"))
        return {"pixel_values": picture, "input_ids": self.ids[k % len(self.ids)]}


def reference(s: Setup, folder: Path, checkpointing: bool) -> Callable[[int], None]:
    """BK-SDM's training for a number of steps: its equations 1 to 4, weights one."""
    pictures = Pictures(folder, 4 * s.batch, s.pixels.shape[-1], s.ids)
    accelerator = Accelerator(cpu=True)
    for unet in (s.teacher, s.student):
        unet.to(memory_format=torch.contiguous_format)  # it leaves the layout as it is
    if checkpointing:
        s.student.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(s.student.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    loader = torch.utils.data.DataLoader(pictures, s.batch, shuffle=True)
    student, optimizer, loader, schedule = accelerator.prepare(s.student, optimizer, loader, schedule)
    average = EMAModel(student.parameters(), decay=EMA)
    outputs: dict[tuple[str, str], Tensor] = {}
    for name, unet in (("teacher", s.teacher), ("student", student)):
        for stage in STAGES:

            def keep(module: object, given: object, made: object, key: tuple[str, str] = (name, stage)) -> None:
                outputs[key] = made[0] if isinstance(made, tuple) else made  # type: ignore[assignment]

            unet.get_submodule(stage).register_forward_hook(keep)

    def train(steps: int) -> None:
        done, bar = 0, tqdm(total=steps, disable=True)
        while done < steps:
            for batch in loader:
                latents = s.vae.encode(batch["pixel_values"]).latent_dist.sample() * s.vae.config.scaling_factor
                noise = torch.randn_like(latents)
                t = torch.randint(0, s.scheduler.config.num_train_timesteps, (len(latents),))
                noisy = s.scheduler.add_noise(latents, noise, t)
                prompts = s.text(batch["input_ids"])[0]
                made = student(noisy, t, prompts).sample
                target = s.scheduler.get_velocity(latents, noise, t)  # this scheduler's prediction is v
                task = F.mse_loss(made.float(), target.float())
                output = F.mse_loss(made.float(), s.teacher(noisy, t, prompts).sample.float())
                pairs = [(outputs["student", stage], outputs["teacher", stage]) for stage in STAGES]
                apart = [F.mse_loss(mine.float(), theirs.detach().float()) for mine, theirs in pairs]
                feature = torch.stack(apart).sum()
                terms = task + output + feature, task, output, feature
                said = [accelerator.gather(term.repeat(s.batch)).mean().item() for term in terms]
                accelerator.backward(terms[0])
                accelerator.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                average.step(student.parameters())
                with (folder / "log.csv").open("a") as log:
                    csv.writer(log).writerow([done, *said])
                bar.set_postfix({str(k): term.item() for k, term in enumerate(terms)})
                bar.update()
                done += 1
                if done == steps:
                    break

    return train


def ours(s: Setup, folder: Path, objective: BKSDMLoss | KDCLoss) -> Callable[[int], None]:
    """`kdcdiff distill` for a number of steps, on the cache that its first minute has encoded."""

    def train(steps: int) -> None:
        named = folder / f"steps-{steps}"
        distill(s.student, s.teacher, s.cache, s.scheduler, objective, steps=steps, batch=s.batch, lr=LR,
                schedule="constant", warmup=0, ema=EMA, norms_every=0, folder=named, describe="")  # fmt: skip

    return train


LOOPS: dict[str, Callable[[Setup, Path], Callable[[int], None]]] = {
    "BK-SDM's script": lambda s, folder: reference(s, folder, checkpointing=True),
    "the same, activations kept": lambda s, folder: reference(s, folder, checkpointing=False),
    "ours, BK-SDM's loss": lambda s, folder: ours(s, folder, BKSDMLoss()),
    "ours, equation (6)": lambda s, folder: ours(s, folder, KDCLoss()),
}


def prepared(size: str, batch: int, side: int) -> Setup:
    """Make the models and inputs of `distill.py`, with BK-SDM's student."""
    setup = Setup(size, torch.float32, batch, side)
    setup.student = surgery.shrink(setup.teacher, VARIANT).requires_grad_(True).train()
    return setup


def seconds_a_step(size: str, loop: str) -> float:
    """Train in this process: one step to warm up, then those that are counted."""
    side, batch, steps = SIZES[size]
    setup = prepared(size, batch, side)
    if loop.startswith("ours"):
        del setup.vae, setup.text
    with tempfile.TemporaryDirectory() as folder:
        train = LOOPS[loop](setup, Path(folder))
        train(1)
        start = time.perf_counter()
        train(steps)
        return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop", choices=tuple(LOOPS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        print(seconds_a_step(args.size, args.loop))
        return
    taken: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    for _ in range(args.rounds):
        for loop, own in taken.items():
            words = [sys.executable, __file__, "--size", args.size, "--loop", loop]
            own.append(float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1]))
    batch, first = SIZES[args.size][1], taken[next(iter(LOOPS))]
    for loop, own in taken.items():
        ratios = sorted(a / b for a, b in zip(first, own, strict=True))
        spread = f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        seconds = statistics.median(own)
        print(f"{loop:<28} {seconds:>8.3f} s a step, {batch / seconds:>7.3g} images/s, {spread}")


if __name__ == "__main__":
    main()
