"""`kdcdiff continual`: new classes for a pipeline of one's own, one after another, with replay of the old ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcdiff.cli import arguments
from kdcdiff.cli.arguments import decay, one_of, positive, weight, whole
from kdcdiff.errors import check
from kdcdiff.models.shipped import PIPELINES

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    from kdcdiff.data.image_set import ImageSet
    from kdcdiff.data.latents import LatentSet
    from kdcdiff.models.classifier import Classifier
    from kdcdiff.store import Store

METHODS = (  # of `training.continual`, whose import takes a second
    "naive", "latent-replay", "latent-replay-distilled", "pixel-replay", "jpeg-replay", "generative-replay", "lwf",
    "ewc", "joint",
)  # fmt: skip
POLICIES = ("reservoir", "ring", "herding", "uniform")
CODECS = ("fp16", "uint8")
TRAINING = ("steps", "batch", "lr", "ema", "capacity", "policy", "codec")  # what `continual.learn` is told
JUDGE_BATCH = 64
JUDGE_SIZE = 128  # pixels a side at most: a small classifier needs no more


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--student", type=arguments.pipeline, required=True, help=PIPELINES)
    data = "what it is to learn: a folder of class folders, with or without train; or flora, garden: its novel ones"
    add("--data", type=arguments.dataset, required=True, help=data)
    add("--classes", nargs="+", metavar="CLASS", help="which, and in what order (default: all, by name)")
    base = "what it knows already, as --data: its latents are in the memory from the first class on (default: none)"
    add("--base", type=arguments.dataset, help=base)
    out = "folder of the new pipeline; must not exist. The same command goes on from what lies unfinished in <out>.work"
    add("--out", type=arguments.new_path, required=True, help=out)
    methods = f"what holds on to the old classes: {', '.join(METHODS)} (default: %(default)s)"
    add("--method", type=one_of(*METHODS), default="latent-replay", help=methods)
    add("--capacity", type=whole(1), default=128, help="latents, or pictures, in the memory in all (%(default)s)")
    policies = f"which of a class's latents stay: {', '.join(POLICIES)} (default: %(default)s)"
    add("--policy", type=one_of(*POLICIES), default="reservoir", help=policies)
    add("--codec", type=one_of(*CODECS), default="fp16", help="how latents are written: fp16 or uint8 (%(default)s)")
    add("--steps", type=whole(1), default=400, help="optimizer steps of each class (default: %(default)s)")
    add("--batch", type=whole(2), default=16, help="latents of a step, old and new (default: %(default)s)")
    add("--lr", type=positive, default=1e-4, help="learning rate (default: %(default)s)")
    add("--ema", type=decay, default=0.9, help="decay of the weights' average that ends a class (%(default)s)")
    add("--per-class", type=whole(1), default=200, help="training pictures of each class (default: %(default)s)")
    arguments.add_resolution(parser, "the pictures, centre squares", "what the student was trained on")
    add("--images", type=whole(1), default=8, help="drawn of each class seen, after every class (default: %(default)s)")
    add("--sampler-steps", type=whole(1), default=25, help="denoising steps of each (default: %(default)s)")
    add("--guidance", type=weight, default=5.0, help="scale of classifier-free guidance (default: %(default)s)")
    judge = "training steps of the classifier that reads them (default: %(default)s)"
    add("--judge-steps", type=whole(1), default=800, help=judge)
    add("--seed", type=arguments.seed, default=0, help="default: %(default)s")
    arguments.add_device(parser)


def run(args: argparse.Namespace) -> int:
    from kdcdiff.data.image_set import joined
    from kdcdiff.data.latents import encode
    from kdcdiff.data.origin import origin_of
    from kdcdiff.data.sources import open_training
    from kdcdiff.metrics.forgetting import Record
    from kdcdiff.models.export import learnt_card, name_of, save_distilled
    from kdcdiff.models.pipeline import at_resolution, image_size, load_pipeline
    from kdcdiff.store import Store, claim
    from kdcdiff.training import continual

    device, source = arguments.device_of(args), open_training(args.data)
    known = source.novel or source.classes
    order = tuple(args.classes or known)
    for word in order:
        check(word in known, "classes", word, f"must be of {', '.join(known)}")
    old = open_training(args.base) if args.base else None
    base = (old.base or old.classes) if old else ()
    both = sorted(set(base) & set(order))
    check(not both, "classes", ", ".join(both), "are among those of --base")
    work = args.out.with_name(args.out.name + ".work")
    asked = {name: value for name, value in vars(args).items() if name not in ("out", "device", "run")}
    claim(work / "settings.json", asked, "the work of another command")

    pipeline = load_pipeline(args.student).to(device)
    size = image_size(at_resolution(pipeline, args.resolution or image_size(pipeline)))
    images = source.load("train", order, args.per_class, size)
    if old:
        images = joined(old.load("train", base, args.per_class, size), images)
    store = Store(work / "store", say=lambda line: print(line, file=sys.stderr, flush=True))
    latents, judge = _latents(store, pipeline, images), _judge(args, store, images, device)
    record = Record(work / "scores", tuple(base), order)

    def draw(unet: UNet2DConditionModel, classes: tuple[str, ...], count: int) -> ImageSet:
        from kdcdiff.experiments.stages import draw

        pipeline.unet = unet
        sampler = {"seed": args.seed, "steps": args.sampler_steps, "guidance": args.guidance}
        return draw(pipeline, images.classes, classes, count, **sampler)

    def measure(stage: int, unet: UNet2DConditionModel) -> None:
        if record.has(stage):
            return
        learnt = order if continual.METHODS[args.method].joint and stage >= 0 else order[: stage + 1]
        seen = (*base, *learnt)
        scores = _scores(draw(unet, seen, args.images), judge, work / "sheets", stage) if seen else {}
        record.add(stage, scores)
        told = ", ".join(f"{name} {value:.3f}" for name, value in record.summary().items()) if learnt else ""
        print(f"{'before' if stage < 0 else learnt[-1]}: {told or 'base classes alone'}", flush=True)

    measure(-1, pipeline.unet)
    student = pipeline.unet
    memory = continual.learn(
        student, latents, order, pipeline.scheduler, args.method, base=base, seed=args.seed, folder=work / "training",
        origin=origin_of(pipeline.vae), pixels=images.images, encoder=lambda pixels: encode(pipeline.vae, pixels)[0],
        generate=lambda unet, classes, count: _encoded(pipeline, draw(unet, tuple(classes), count)),
        after_stage=measure, **{name: getattr(args, name) for name in TRAINING},
    )  # fmt: skip
    pipeline.unet = student
    told = {name: f"{value:.3f}" for name, value in record.summary().items()}
    training = {"classes": ", ".join(order), "known before": ", ".join(base) or "nothing named", "method": args.method}
    training |= {name: getattr(args, name) for name in TRAINING} | {"memory": f"{memory:,} bytes", "seed": args.seed}
    card = learnt_card(name_of(args.student), len(order), training | told)
    save_distilled(pipeline, card, args.out)
    print(f"pipeline written to {args.out}; sheets and the matrix of accuracies are in {work}")
    return 0


def _encoded(pipeline: StableDiffusionPipeline, images: ImageSet) -> LatentSet:
    from kdcdiff.data.latents import encode_set

    return encode_set(pipeline, images)


def _latents(store: Store, pipeline: StableDiffusionPipeline, images: ImageSet) -> LatentSet:
    """Encode the pictures once; read them when the command goes on."""
    from kdcdiff.data.latents import LatentSet

    def make(folder: Path, **pictures: Any) -> None:
        _encoded(pipeline, images).save(folder)

    settings = {"classes": images.classes, "count": len(images), "size": images.images.shape[-1]}
    return LatentSet.load(store.get("latents", make, settings=settings).path)


def _judge(args: argparse.Namespace, store: Store, images: ImageSet, device: str) -> Classifier:
    """Train the classifier of all classes, on their pictures alone, at a size of its own; once."""
    from kdcdiff.models.classifier import load_classifier, save_classifier
    from kdcdiff.training.components import train_classifier

    def make(folder: Path, *, classes: Sequence[str], **training: Any) -> None:
        save_classifier(train_classifier(images, folder=folder, describe="judge", device=device, **training), folder)

    side = images.images.shape[-1]
    settings = {"classes": images.classes, "steps": args.judge_steps, "batch": JUDGE_BATCH, "seed": args.seed}
    settings |= {"side": JUDGE_SIZE if side > JUDGE_SIZE else None}
    return load_classifier(store.get("judge", make, settings=settings).path).to(device)


def _scores(drawn: ImageSet, judge: Classifier, sheets: Path, stage: int) -> dict[str, float]:
    """Read each class's pictures by the classifier, class -> share; save them as a sheet, a class in a row."""
    from kdcdiff.metrics.accuracy import predictions
    from kdcdiff.sampling.folder import save_grid

    right = predictions(drawn.images, judge) == drawn.labels
    names = dict.fromkeys(drawn.classes[label] for label in drawn.labels.tolist())
    save_grid(drawn.images, sheets / f"stage-{stage + 1:02d}.png", columns=len(drawn) // len(names))
    labels = {name: drawn.classes.index(name) for name in names}
    return {name: right[drawn.labels == label].float().mean().item() for name, label in labels.items()}
