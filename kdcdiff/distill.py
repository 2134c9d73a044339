"""Distillation: pruned students learn from their teacher on cached latents.

The teacher runs once a step, without gradients, for however many students listen; the stages that both networks have
are tapped on the bare modules; each student has its own objective (`losses.KDCLoss`, equation (6) of KDC-Diff, or
`losses.BKSDMLoss`), whose terms are logged one by one. The loop is `training.fit`.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from kdcdiff.errors import check
from kdcdiff.features import Taps
from kdcdiff.latents import LatentSet, Noised, draw_rows, noised_batch
from kdcdiff.losses import KDCLoss, Weighted, min_snr_weight
from kdcdiff.training import fit

PROTOCOLS: dict[str, dict[str, Any]] = {  # settings of `distill` as the papers print them; what they leave out is ours
    "here": {},
    "kdc-diff": {"batch": 1, "lr": 5e-5, "precision": "fp16", "checkpointing": True},
    "bk-sdm": {"batch": 64, "accumulate": 4, "lr": 5e-5, "schedule": "constant", "steps": 50_000},
}
_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class _Students(nn.ModuleList):
    """Several U-Nets as one module, for the loop and whatever wraps it; each is clipped on its own."""

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [student(*inputs, return_dict=False)[0] for student in self]


def distill(
    student: UNet2DConditionModel,  # trained in place
    teacher: UNet2DConditionModel,  # moved to the device, and to `precision`
    latents: LatentSet,
    scheduler: DDIMScheduler,  # adds the noise and says what a prediction is
    objective: Weighted,
    **settings: Any,  # those of `distill_together`
) -> list[dict[str, float]]:
    """Train `student` on `latents` against `teacher`; return the log: loss, each term, its gradient's norm."""
    return distill_together({"": (student, objective)}, teacher, latents, scheduler, **settings)


def distill_together(
    students: Mapping[str, tuple[UNet2DConditionModel, Weighted]],
    teacher: UNet2DConditionModel,
    latents: LatentSet,
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
    precision: str = "no",
    checkpoint_every: int = 200,
    norms_every: int = 200,
    describe: str = "distilling",
    **settings: Any,  # any other of `training.fit`: seed, folder, ema, accumulate, trackers, ...
) -> list[dict[str, float]]:
    """Train every student of `students` in place on the same batches, against one teacher forward a step.

    The log's terms are `<name>.<term>`; a student named "" logs them plainly. The students share nothing else: each
    ends as if it had been trained alone with the same seed.
    """
    check(precision in _DTYPES, "precision", precision, f"must be one of {', '.join(_DTYPES)}")
    teacher.to(Accelerator().device, _DTYPES[precision])
    for unet, _ in students.values():
        unet.to(memory_format=torch.channels_last)
        if checkpointing:
            unet.enable_gradient_checkpointing()

    def batch_of(step: int, generator: torch.Generator) -> Noised:
        return noised_batch(latents, draw_rows(batch, len(latents), generator), scheduler, generator, dropout)

    with taught(students, teacher, scheduler, snr_gamma) as price:

        def loss(model: nn.Module, data: Noised, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            return price(model(data.noisy, data.timestep, data.prompt), data)

        return fit(
            _Students(unet for unet, _ in students.values()), loss, batch_of, steps=steps, lr=lr,
            warmup=min(warmup, steps), schedule=schedule, precision=precision, checkpoint_every=checkpoint_every,
            norms_every=norms_every, describe=describe, **settings,
        )  # fmt: skip


Price = Callable[[Sequence[Tensor], Noised], tuple[Tensor, dict[str, Tensor]]]


@contextlib.contextmanager
def taught(
    students: Mapping[str, tuple[UNet2DConditionModel, Weighted]],
    teacher: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    snr_gamma: float = 0.0,
) -> Iterator[Price]:
    """(each student's predictions for a batch, the batch) -> the sum of their objectives, and each term.

    One forward of `teacher` serves all students; their features are tapped while the context is open.
    """
    teacher.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    with contextlib.ExitStack() as hooks:
        taps = [hooks.enter_context(Taps(unet, teacher)) for unet, _ in students.values()]

        def price(predictions: Sequence[Tensor], data: Noised) -> tuple[Tensor, dict[str, Tensor]]:
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

        yield price


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """`kdcdiff distill`: a smaller model of one's own, and no book."""
    parser = subparsers.add_parser("distill", help="distil a smaller student from a Stable-Diffusion pipeline")
    parser.add_argument("--teacher", default="flora", help="flora, a pipeline folder or a hub id")
    parser.add_argument("--variant", default="kdc-described", help="what to remove; `kdcdiff shrink --help` lists them")
    parser.add_argument("--data", default="flora", help="flora or an image folder with train and test")
    parser.add_argument("--out", type=Path, required=True, help="folder of the student's pipeline; must not exist")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="here", help="the papers' printed settings; later options replace them"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (2000)")
    parser.add_argument("--batch", type=int, help="images of a micro-batch, all processes together (32)")
    parser.add_argument("--accumulate", type=int, help="micro-batches of a step (1)")
    parser.add_argument("--lr", type=float, help="peak learning rate (5e-4)")
    parser.add_argument("--schedule", choices=("constant", "linear", "cosine"), help="after warm-up (cosine)")
    parser.add_argument("--precision", choices=tuple(_DTYPES), help="mixed precision (no)")
    parser.add_argument("--checkpointing", action="store_true", default=None, help="trade time for memory")
    parser.add_argument("--ema", type=float, help="decay of averaged weights (0: none)")
    parser.add_argument("--snr-gamma", type=float, help="of min-SNR weights (0: none)")
    for name in ("alpha", "beta", "gamma", "temperature"):
        default = getattr(KDCLoss(), name)
        parser.add_argument(f"--{name}", type=float, default=default, help=f"of equation (6) ({default})")
    parser.add_argument("--per-class", type=int, default=200, help="training images of each class")
    parser.add_argument("--views", type=int, default=1, help="of each picture: itself, then random crops and mirrors")
    parser.add_argument("--tracker", action="append", help="of accelerate's: tensorboard, wandb, ...")
    parser.add_argument("--sheet-every", type=int, default=0, help="steps between sample sheets (0: none)")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from kdcdiff import data, stack, surgery
    from kdcdiff.latents import encode_set

    check(not args.out.exists(), "out", str(args.out), "must be a folder that does not exist yet")
    objective = KDCLoss(alpha=args.alpha, beta=args.beta, gamma=args.gamma, temperature=args.temperature)
    chosen = ("steps", "batch", "accumulate", "lr", "schedule", "precision", "checkpointing", "ema", "snr_gamma")
    given = {name: getattr(args, name) for name in chosen if getattr(args, name) is not None}
    settings = {"steps": 2000} | PROTOCOLS[args.protocol] | given
    pipeline = stack.load(args.teacher)
    student = surgery.shrink(pipeline.unet, args.variant)
    source = data.open_source(args.data)
    images = source.load("train", source.classes, args.per_class)
    latents = encode_set(pipeline, images.views(args.views, args.seed))
    work = args.out.with_name(args.out.name + ".work")  # snapshots: the same command goes on after a kill
    distill(
        student, pipeline.unet, latents, pipeline.scheduler, objective, seed=args.seed, folder=work,
        trackers=tuple(args.tracker or ()), watch=_sheets(pipeline, student, source.classes, work / "sheets"),
        watch_every=args.sheet_every, **settings,
    )  # fmt: skip
    if not PartialState().is_main_process:
        return 0
    pipeline.unet = student.to("cpu")
    pipeline.save_pretrained(work / "pipeline", safe_serialization=True)
    (work / "pipeline").rename(args.out)
    print(f"student written to {args.out}")
    return 0


def _sheets(
    pipeline: StableDiffusionPipeline, student: UNet2DConditionModel, classes: Sequence[str], folder: Path
) -> Callable[[int], None]:
    """A watcher that draws one picture of each of the first eight classes, always from the same noise."""
    from PIL import Image
    from torchvision.utils import make_grid

    from kdcdiff import data, sampling

    prompts = [data.caption_of(name) for name in classes[:8]]

    def draw(step: int) -> None:
        teacher, pipeline.unet = pipeline.unet, student
        images = sampling.generate(pipeline, prompts, seed=0, steps=20, guidance=4.0)
        pipeline.unet = teacher
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_grid(images, nrow=4).permute(1, 2, 0).numpy()).save(folder / f"step-{step:07d}.png")

    return draw
