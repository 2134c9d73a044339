"""`kdcdiff distill`: a smaller model of one's own, and no book."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kdcdiff.cli import arguments
from kdcdiff.cli.arguments import decay, fraction, one_of, positive, weight, whole
from kdcdiff.errors import UserError, check
from kdcdiff.models.shipped import PIPELINES
from kdcdiff.models.variants import VARIANTS
from kdcdiff.training.protocols import HERE, PROTOCOLS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from kdcdiff.data.latents import Rows

WEIGHTS: dict[str, dict[str, tuple[str, arguments.Type, str]]] = {  # objective -> option -> its field, type and meaning
    "kdc-diff": {
        "--alpha": ("alpha", fraction, "weight of the soft targets, the hard ones have the rest (0.9)"),
        "--beta": ("beta", weight, "weight of the features (0.1)"),
        "--gamma": ("gamma", weight, "weight of the denoising error (1.0)"),
        "--temperature": ("temperature", positive, "of the soft targets (4.0)"),
        "--reading": ("reading", one_of("all", "space", "channels"), "what a softmax runs over (all)"),
        "--label": ("label", one_of("distribution", "argmax"), "the hard target (distribution)"),
    },
    "bk-sdm": {
        "--output-weight": ("output", weight, "weight of the teacher's output (1.0)"),
        "--feature-weight": ("feature", weight, "weight of the features (1.0)"),
    },
}
SETTINGS: dict[str, tuple[arguments.Type, str]] = {  # of a protocol
    "steps": (whole(1), "optimizer steps"),
    "batch": (whole(1), "images of a micro-batch, all processes together"),
    "accumulate": (whole(1), "micro-batches of a step"),
    "lr": (positive, "peak learning rate"),
    "schedule": (one_of("constant", "linear", "cosine"), "constant, linear or cosine, after warm-up"),
    "precision": (one_of("no", "fp16", "bf16"), "mixed precision: no, fp16 or bf16"),
    "ema": (decay, "decay of averaged weights, 0 for none"),
    "snr_gamma": (weight, "of min-SNR weights, 0 for none"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--teacher", type=arguments.pipeline, default="flora", help=f"{PIPELINES} (default: %(default)s)")
    variants = f"what to remove: {', '.join(VARIANTS)}, or a JSON file (default: %(default)s)"
    add("--variant", type=arguments.variant, default="kdc-described", help=variants)
    add("--data", type=arguments.dataset, default="flora", help=f"{arguments.DATASETS} (default: %(default)s)")
    cache = "a cache that `kdcdiff encode` wrote with this teacher: its rows are trained on, instead of --data"
    add("--latents", type=arguments.folder, metavar="FOLDER", help=cache)
    classes = (
        "to train on (default: all). Of flora and garden base classes only, for no weight is to have seen a novel one; "
    )
    classes += "of an image folder any, so name those to be learnt where others are to stay unseen"
    add("--classes", nargs="+", metavar="CLASS", help=classes)
    add("--out", type=arguments.new_path, required=True, help="folder of the student's pipeline; must not exist")
    protocols = f"{', '.join(PROTOCOLS)}: objective and settings as printed; other options replace them (default: here)"
    add("--protocol", type=one_of(*PROTOCOLS), default="here", help=protocols)
    for name, (kind, meaning) in SETTINGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help=f"{meaning} ({HERE[name]})")
    add("--checkpointing", action="store_true", default=None, help="trade time for memory")
    add("--objective", type=one_of(*WEIGHTS), help=f"{' or '.join(WEIGHTS)} (default: the protocol's)")
    for objective, options in WEIGHTS.items():
        group = parser.add_argument_group(f"of --objective {objective}")
        for option, (_, kind, meaning) in options.items():
            group.add_argument(option, dest=option, metavar="X", type=kind, help=meaning)
    add("--per-class", type=whole(1), default=200, help="training images of each class (default: %(default)s)")
    arguments.add_resolution(parser, "the pictures, centre squares", "what the teacher was trained on")
    views = "of each picture: itself, then random crops and mirrors (default: %(default)s)"
    add("--views", type=whole(1), default=1, help=views)
    add("--tracker", action="append", help="of accelerate's: tensorboard, wandb, ...")
    add("--sheet-every", type=whole(0), default=0, help="steps between sample sheets (0: none)")
    add("--checkpoint-every", type=whole(1), default=200, help="steps between checkpoints (default: %(default)s)")
    add("--seed", type=arguments.seed, default=0, help="default: %(default)s")
    arguments.add_device(parser)


def _chosen(args: argparse.Namespace) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the objective, its fields, and the settings of training. UserError: an option of another objective."""
    given = {name: getattr(args, name) for name in (*SETTINGS, "checkpointing", "objective")}
    settings = PROTOCOLS[args.protocol] | {name: value for name, value in given.items() if value is not None}
    chosen, fields = settings.pop("objective"), {}
    for objective, options in WEIGHTS.items():
        for option, (field, _, _) in options.items():
            if (value := getattr(args, option)) is not None:
                if objective != chosen:
                    raise UserError(f"{option}: belongs to --objective {objective}")
                fields[field] = value
    return chosen, fields, settings


Read = tuple["Rows", tuple[str, ...], str]  # what is trained on, the classes in it, and its description


def _encoded(args: argparse.Namespace) -> Callable[[StableDiffusionPipeline], Read]:
    """Open ``--data``, whose pictures are encoded and held in memory. UserError: a class that it has not."""
    from kdcdiff.data.latents import encode_set
    from kdcdiff.data.sources import open_source
    from kdcdiff.models.pipeline import image_size

    source = open_source(args.data)
    known = source.base if source.ships else source.classes  # no shipped weight is to have seen a novel class
    classes = tuple(args.classes or known)
    for word in classes:
        check(word in known, "classes", word, f"must be of {', '.join(known)}")

    def read(pipeline: StableDiffusionPipeline) -> Read:
        side = image_size(pipeline)
        images = source.load("train", classes, args.per_class, side)
        sizes = f"{len(images)} images, {args.views} views of each, {side} pixels a side"
        said = f"{source.name}: {', '.join(classes)}; {sizes}"
        return encode_set(pipeline, images.views(args.views, args.seed)), classes, said

    return read


def _cached(args: argparse.Namespace) -> Callable[[StableDiffusionPipeline], Read]:
    """Open ``--latents``, whose rows are read as they are drawn. UserError: it is another autoencoder's, or size."""
    from kdcdiff.data.origin import origin_of
    from kdcdiff.data.shards import ShardedLatents
    from kdcdiff.models.pipeline import image_size

    cache = ShardedLatents(args.latents)
    check(args.classes is None, "classes", args.classes, "cannot be chosen from a cache, which is trained on whole")

    def read(pipeline: StableDiffusionPipeline) -> Read:
        own, side = origin_of(pipeline.vae), image_size(pipeline)
        check(
            cache.origin == own, "latents", str(args.latents), "were encoded by another autoencoder than the teacher's"
        )
        check(
            cache.size == side,
            "latents",
            str(args.latents),
            f"are of {cache.size} pixels; give --resolution {cache.size}",
        )
        return cache, cache.classes, f"{args.latents.name}: {len(cache)} images, {side} pixels a side"

    return read


def run(args: argparse.Namespace) -> int:
    name, fields, settings = _chosen(args)

    from accelerate import PartialState

    from kdcdiff.data.image_set import caption_of
    from kdcdiff.models import surgery
    from kdcdiff.models.export import model_card, name_of, save_distilled
    from kdcdiff.models.pipeline import at_resolution, image_size, load_pipeline
    from kdcdiff.sampling.folder import save_sheet
    from kdcdiff.training.distill import OBJECTIVES, distill

    process = PartialState(cpu=arguments.device_of(args) == "cpu")  # on a GPU of its own where there are several
    half = settings["precision"] == "fp16" and process.device.type == "cpu"
    check(not half, "precision", "fp16", "needs a GPU; give --precision bf16 or no")
    objective = OBJECTIVES[name](**fields)
    read = _cached if args.latents else _encoded
    latents_of = read(args)  # whatever is wrong with the words is said before a network is loaded
    pipeline = load_pipeline(args.teacher).to(process.device)
    at_resolution(pipeline, args.resolution or image_size(pipeline))
    latents, classes, data = latents_of(pipeline)
    teacher, student = pipeline.unet, surgery.shrink(pipeline.unet, args.variant)
    work = args.out.with_name(args.out.name + ".work")  # snapshots: the same command goes on after a kill
    pipeline.unet = student

    def watch(step: int) -> None:
        save_sheet(pipeline, [caption_of(word) for word in classes[:8]], work / "sheets" / f"step-{step:07d}.png")

    log = distill(
        student, teacher, latents, pipeline.scheduler, objective, seed=args.seed, folder=work,
        trackers=tuple(args.tracker or ()), watch=watch, watch_every=args.sheet_every,
        checkpoint_every=args.checkpoint_every, **settings,
    )  # fmt: skip
    if process.is_main_process:
        weights = f"{name}: {', '.join(f'{field} {value}' for field, value in vars(objective).items())}"
        last = ", ".join(f"{term} {value:.4g}" for term, value in log[-1].items() if term != "step")
        training = {"objective": weights, "data": data} | settings | {"seed": args.seed, "losses at the end": last}
        dtype = str(student.dtype).removeprefix("torch.")
        card = model_card(teacher.config, args.variant, name_of(args.teacher), dtype, training)
        save_distilled(pipeline, card, args.out)
        print(f"student written to {args.out}")
    return 0
