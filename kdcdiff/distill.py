"""Distillation: a pruned student learns from its teacher on cached latents.

The teacher runs without gradients; the stages that both networks have are tapped on the bare modules; the loss is
`losses.KDCLoss`, equation (6) of KDC-Diff, whose terms are logged one by one. The loop is `training.fit`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from kdcdiff.features import Taps
from kdcdiff.latents import LatentSet, Noised, draw_rows, noised_batch
from kdcdiff.losses import KDCLoss
from kdcdiff.training import fit


def distill(
    student: UNet2DConditionModel,  # trained in place
    teacher: UNet2DConditionModel,
    latents: LatentSet,
    scheduler: DDIMScheduler,  # adds the noise and says what a prediction is
    objective: KDCLoss,
    *,
    steps: int,
    batch: int = 32,
    lr: float = 5e-4,
    warmup: int = 50,
    dropout: float = 0.1,  # share of captions dropped, for classifier-free guidance
    ema: float = 0.0,
    accumulate: int = 1,
    precision: str = "no",
    seed: int = 0,
    folder: Path | None = None,
    checkpoint_every: int = 200,
    describe: str = "distilling",
) -> list[dict[str, float]]:
    """Train `student` on `latents` against `teacher`; return the log: loss and each term of equation (6)."""
    teacher = teacher.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    student.to(memory_format=torch.channels_last)

    def batch_of(step: int, generator: torch.Generator) -> Noised:
        return noised_batch(latents, draw_rows(batch, len(latents), generator), scheduler, generator, dropout)

    with Taps(student, teacher) as taps:

        def loss(model: nn.Module, data: Noised, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            inputs = (data.noisy, data.timestep, data.prompt)
            with torch.no_grad():
                wanted = teacher(*inputs, return_dict=False)[0]
            predicted = model(*inputs, return_dict=False)[0]
            student_features, teacher_features = taps.pop()
            return objective(
                student=predicted, teacher=wanted, target=data.target,
                student_features=student_features, teacher_features=teacher_features,
            )  # fmt: skip

        return fit(
            student, loss, batch_of, steps=steps, lr=lr, warmup=min(warmup, steps), ema=ema, accumulate=accumulate,
            precision=precision, seed=seed, folder=folder, checkpoint_every=checkpoint_every, describe=describe,
        )  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kdcdiff distill`: a smaller model of one's own, and no book."""
    parser = subparsers.add_parser("distill", help="distil a smaller student from a Stable-Diffusion pipeline")
    parser.add_argument("--teacher", default="flora", help="flora, a pipeline folder or a hub id")
    parser.add_argument("--variant", default="kdc-described", help="what to remove; `kdcdiff shrink --help` lists them")
    parser.add_argument("--data", default="flora", help="flora or an image folder with train and test")
    parser.add_argument("--out", type=Path, required=True, help="folder of the student's pipeline; must not exist")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--alpha", type=float, default=KDCLoss().alpha)
    parser.add_argument("--beta", type=float, default=KDCLoss().beta)
    parser.add_argument("--gamma", type=float, default=KDCLoss().gamma)
    parser.add_argument("--temperature", type=float, default=KDCLoss().temperature)
    parser.add_argument("--per-class", type=int, default=200, help="training images of each class")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="no")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from kdcdiff import data, stack, surgery
    from kdcdiff.errors import check
    from kdcdiff.latents import encode_set

    check(not args.out.exists(), "out", str(args.out), "must be a folder that does not exist yet")
    objective = KDCLoss(alpha=args.alpha, beta=args.beta, gamma=args.gamma, temperature=args.temperature)
    pipeline = stack.load(args.teacher)
    student = surgery.shrink(pipeline.unet, args.variant)
    source = data.open_source(args.data)
    latents = encode_set(pipeline, source.load("train", source.classes, args.per_class))
    work = args.out.with_name(args.out.name + ".work")  # checkpoints: the same command goes on after a kill
    distill(
        student, pipeline.unet, latents, pipeline.scheduler, objective, steps=args.steps, batch=args.batch, lr=args.lr,
        precision=args.precision, seed=args.seed, folder=work,
    )  # fmt: skip
    pipeline.unet = student
    pipeline.save_pretrained(work / "pipeline", safe_serialization=True)
    (work / "pipeline").rename(args.out)
    print(f"student written to {args.out}")
    return 0
