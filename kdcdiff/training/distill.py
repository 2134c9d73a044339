"""Distillation: pruned students learn from their teacher on cached latents.

The teacher runs once a step, without gradients, for however many students listen; the stages that both networks have
are tapped on the bare modules; each student has its own objective (`losses.KDCLoss`, equation (6) of KDC-Diff, or
`losses.BKSDMLoss`, equation (4) of BK-SDM), whose terms are logged one by one. The loop is `loop.fit`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from kdcdiff.data.latents import DenoisingBatch, Rows, denoising_batch, draw_rows
from kdcdiff.errors import check
from kdcdiff.models.feature_hooks import Taps
from kdcdiff.training.loop import fit, precision_of
from kdcdiff.training.losses import BKSDMLoss, DistillationLoss, KDCLoss, min_snr_weight

OBJECTIVES: dict[str, type[DistillationLoss]] = {"kdc-diff": KDCLoss, "bk-sdm": BKSDMLoss}
_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LossFn = Callable[[Sequence[Tensor], DenoisingBatch], tuple[Tensor, dict[str, Tensor]]]


class _Students(nn.ModuleList):
    """Several U-Nets as one module, for the loop and whatever wraps it; each is clipped on its own."""

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [student(*inputs, return_dict=False)[0] for student in self]


def distill(
    student: UNet2DConditionModel,  # trained in place
    teacher: UNet2DConditionModel,  # moved to the student's device, and to `precision`
    latents: Rows,
    scheduler: DDIMScheduler,  # adds the noise and says what a prediction is
    objective: DistillationLoss,
    **settings: Any,  # those of `distill_together`
) -> list[dict[str, float]]:
    """Train `student` on `latents` against `teacher`; return the log: step, loss, each term, its gradient's norm."""
    return distill_together({"": (student, objective)}, teacher, latents, scheduler, **settings)


def distill_together(
    students: Mapping[str, tuple[UNet2DConditionModel, DistillationLoss]],
    teacher: UNet2DConditionModel,
    latents: Rows,
    scheduler: DDIMScheduler,
    *,
    steps: int,
    batch: int = 32,
    lr: float = 5e-4,
    warmup: int = 50,
    schedule: str = "cosine",
    dropout: float = 0.1,  # share of captions dropped, for classifier-free guidance
    snr_gamma: float = 0.0,  # of min-SNR weights on the denoising term; 0: all samples weigh the same
    checkpointing: bool = False,  # activations are computed again in the backward pass instead of kept
    precision: str | None = None,  # no, fp16 or bf16; None: as the device computes
    checkpoint_every: int = 200,
    norms_every: int = 200,
    describe: str = "distilling",
    **settings: Any,  # any other of `loop.fit`: seed, folder, ema, accumulate, trackers, ...
) -> list[dict[str, float]]:
    """Train every student of `students` in place on the same batches, against one teacher forward a step.

    The log's terms are `<name>.<term>`; a student named "" logs them plainly. The students share nothing else: each
    ends as if it had been trained alone with the same seed.
    """
    device = next(iter(students.values()))[0].device
    precision = precision_of(device) if precision is None else precision
    check(precision in _DTYPES, "precision", precision, f"must be one of {', '.join(_DTYPES)}")
    teacher.to(device, _DTYPES[precision])
    for unet, _ in students.values():
        unet.to(memory_format=torch.channels_last)
        if checkpointing:
            unet.enable_gradient_checkpointing()

    def batch_of(step: int, generator: torch.Generator) -> DenoisingBatch:
        return denoising_batch(latents, draw_rows(batch, len(latents), generator), scheduler, generator, dropout)

    with distillation_loss(students, teacher, scheduler, snr_gamma) as loss_fn:

        def loss(model: nn.Module, data: DenoisingBatch, _: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            return loss_fn(model(data.noisy, data.timestep, data.prompt), data)

        return fit(
            _Students(unet for unet, _ in students.values()), loss, batch_of, steps=steps, lr=lr,
            warmup=min(warmup, steps), schedule=schedule, precision=precision, checkpoint_every=checkpoint_every,
            norms_every=norms_every, describe=describe, **settings,
        )  # fmt: skip


@contextlib.contextmanager
def distillation_loss(
    students: Mapping[str, tuple[UNet2DConditionModel, DistillationLoss]],
    teacher: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    snr_gamma: float = 0.0,
) -> Iterator[LossFn]:
    """Give a function of each student's prediction (N, C, h, w) and the batch: the sum of objectives, and each term.

    One forward of `teacher` serves all students; their features are tapped while the context is open.
    """
    teacher.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    with contextlib.ExitStack() as hooks:
        taps = [hooks.enter_context(Taps(unet, teacher)) for unet, _ in students.values()]

        def loss_fn(predictions: Sequence[Tensor], data: DenoisingBatch) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.no_grad():
                wanted = teacher(data.noisy.to(teacher.dtype), data.timestep, data.prompt.to(teacher.dtype)).sample
            weight = None
            if snr_gamma:
                kind = scheduler.config.prediction_type
                weight = min_snr_weight(scheduler.alphas_cumprod, data.timestep, snr_gamma, kind)
            totals: list[Tensor] = []
            terms: dict[str, Tensor] = {}
            for (name, (_, objective)), predicted, tap in zip(students.items(), predictions, taps, strict=True):
                student_features, teacher_features = tap.pop()
                total, own = objective(
                    student=predicted, teacher=wanted, target=data.target, weight=weight,
                    student_features=student_features, teacher_features=teacher_features,
                )  # fmt: skip
                totals.append(total)
                terms |= {f"{name}.{term}" if name else term: value for term, value in own.items()}
            return torch.stack(totals).sum(), terms

        yield loss_fn
