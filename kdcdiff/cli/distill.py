"""`kdcdiff distill`: a smaller model of one's own, and no book."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from kdcdiff.data import sources
from kdcdiff.data.image_set import caption_of
from kdcdiff.data.latents import encode_set
from kdcdiff.errors import check
from kdcdiff.models import surgery
from kdcdiff.models.pipeline import load_pipeline
from kdcdiff.sampling import generate as sampling
from kdcdiff.training.distill import _DTYPES, distill
from kdcdiff.training.losses import KDCLoss

PROTOCOLS: dict[str, dict[str, Any]] = {  # settings of `distill` as the papers print them; what they leave out is ours
    "here": {},
    "kdc-diff": {"batch": 1, "lr": 5e-5, "precision": "fp16", "checkpointing": True},
    "bk-sdm": {"batch": 64, "accumulate": 4, "lr": 5e-5, "schedule": "constant", "steps": 50_000},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:

    check(not args.out.exists(), "out", str(args.out), "must be a folder that does not exist yet")
    objective = KDCLoss(alpha=args.alpha, beta=args.beta, gamma=args.gamma, temperature=args.temperature)
    chosen = ("steps", "batch", "accumulate", "lr", "schedule", "precision", "checkpointing", "ema", "snr_gamma")
    given = {name: getattr(args, name) for name in chosen if getattr(args, name) is not None}
    settings = {"steps": 2000} | PROTOCOLS[args.protocol] | given
    pipeline = load_pipeline(args.teacher)
    student = surgery.shrink(pipeline.unet, args.variant)
    source = sources.open_source(args.data)
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

    prompts = [caption_of(name) for name in classes[:8]]

    def draw(step: int) -> None:
        teacher, pipeline.unet = pipeline.unet, student
        images = sampling.generate(pipeline, prompts, seed=0, steps=20, guidance=4.0)
        pipeline.unet = teacher
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_grid(images, nrow=4).permute(1, 2, 0).numpy()).save(folder / f"step-{step:07d}.png")

    return draw
