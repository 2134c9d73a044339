"""A short distillation of a tiny student on any device, in this process or in one that kills itself in its middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from kdcdiff.data.latents import LatentSet
from kdcdiff.models import surgery
from kdcdiff.training.distill import distill
from kdcdiff.training.losses import KDCLoss

from ..imports import REPO
from ..pipelines import SIZES, make

STEPS, CHECKPOINT, KILLED = 6, 2, 3  # steps in all, between checkpoints, and before the kill
PROMPTS = ["a photo of a rose", "a photo of an iris"]


def rows() -> LatentSet:
    """Make random latents and prompts of the tiny pipeline's sizes."""
    own, g = SIZES["sd-1"], torch.Generator().manual_seed(0)
    shape = (24, own.latents, own.side, own.side)
    return LatentSet(
        mean=torch.randn(shape, generator=g), std=torch.full(shape, 0.1), labels=torch.zeros(24, dtype=torch.long),
        captions=torch.ones(24, dtype=torch.long), prompts=torch.randn(2, own.tokens, own.text, generator=g),
        texts=("", "x"), classes=("x",),
    )  # fmt: skip


def trained(device: str, precision: str, folder: Path | None = None, kill: bool = False) -> tuple[Tensor, list[float]]:
    """Distil a student on `device`; return how far each of its weights went, (P,) on the CPU, and each step's loss."""
    pipeline = make("sd-1", PROMPTS)
    teacher = pipeline.unet.to(device)
    student = surgery.shrink(teacher, "kdc-described").requires_grad_(True)
    before = torch.cat([p.detach().flatten().cpu() for p in student.parameters()])

    def end(step: int) -> None:
        if step == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)

    log = distill(
        student, teacher, rows(), pipeline.scheduler, KDCLoss(), steps=STEPS, batch=8, lr=1e-3, warmup=2, ema=0.5,
        precision=precision, folder=folder, checkpoint_every=CHECKPOINT, log_every=1, describe="",
        watch=end if kill else None, watch_every=1,
    )  # fmt: skip
    after = torch.cat([p.detach().flatten().cpu() for p in student.parameters()])
    return after - before, [row["loss"] for row in log]


def killed(device: str, precision: str, folder: Path) -> int:
    """Begin the same in a process of its own, which kills itself; return how that ended."""
    words = [sys.executable, "-m", "tests.gpu.training", device, precision, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.run(words, cwd=REPO, env=environment, capture_output=True, check=False).returncode


if __name__ == "__main__":
    trained(sys.argv[1], sys.argv[2], Path(sys.argv[3]), kill=True)
