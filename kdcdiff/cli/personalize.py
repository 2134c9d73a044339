"""`kdcdiff personalize`: one subject for a pipeline of one's own, from a few of its pictures (DreamBooth)."""

from __future__ import annotations

import argparse
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kdcdiff.cli import arguments
from kdcdiff.cli.arguments import one_of, positive, weight, whole
from kdcdiff.cli.evaluate import PUBLISHED
from kdcdiff.errors import check
from kdcdiff.models.shipped import PIPELINES, SHIPPED

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor

    from kdcdiff.data.latents import LatentSet
    from kdcdiff.metrics.estimate import Estimate
    from kdcdiff.training.personalize import Subject

MOST_PICTURES = 64  # of a subject: who has more has a class, and `kdcdiff continual`
SCENES = ("a photo of a {}", "a drawing of a {}", "a photo of a {} in the grass", "a photo of a red {}")


@arguments.refusing
def word(text: str) -> str:
    """Take one word, of letters and digits."""
    check(bool(re.fullmatch(r"[A-Za-z0-9]{1,32}", text)), "word", text, "must be one word, of letters and digits")
    return text.lower()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pipeline", type=arguments.pipeline, required=True, help=PIPELINES)
    pictures = "folder of the subject's pictures, 4 to 6 of them; they are read as centre squares"
    add("--subject", type=arguments.folder, required=True, metavar="FOLDER", help=pictures)
    add("--noun", type=word, required=True, help="what the subject is one of, such as flower")
    add("--token", type=word, default="sks", help="a rare word that is to name it (default: %(default)s)")
    out = "folder of the new pipeline; must not exist. The same command goes on from what lies unfinished in <out>.work"
    add("--out", type=arguments.new_path, required=True, help=out)
    add("--steps", type=whole(1), default=800, help="optimizer steps (default: %(default)s, BK-SDM's)")
    add("--batch", type=whole(1), default=1, help="pictures of the subject in a step (default: %(default)s)")
    add("--lr", type=positive, default=5e-6, help="learning rate; with --lora 1e-4 is usual (default: %(default)s)")
    prior = "pictures of the class that the pipeline draws before, to go on learning from them (default: %(default)s)"
    add("--prior-images", type=whole(1), default=100, help=prior)
    add("--prior-weight", type=weight, default=1.0, help="of their loss (default: %(default)s)")
    lora = "train an adapter of this rank beside the attentions, by peft, instead of the whole U-Net"
    add("--lora", type=whole(1, 1024), metavar="RANK", help=lora)
    arguments.add_resolution(parser, "the pictures", "what the pipeline was trained on")
    add("--images", type=whole(2), default=8, help="drawn of each scene, before and after (default: %(default)s)")
    add("--sampler-steps", type=whole(1), default=25, help="denoising steps of each (default: %(default)s)")
    add("--guidance", type=weight, default=7.5, help="scale of classifier-free guidance (default: %(default)s)")
    extractors = f"what subject fidelity is seen through: {', '.join((*SHIPPED, *PUBLISHED))} (default: %(default)s)"
    add("--extractor", type=one_of(*SHIPPED, *PUBLISHED), default="flora", help=extractors)
    add("--weights", help="folder of a published extractor's safetensors and checksums.json")
    add("--seed", type=arguments.seed, default=0, help="default: %(default)s")
    arguments.add_device(parser)


def run(args: argparse.Namespace) -> int:
    check(
        args.lora is None or find_spec("peft") is not None, "lora", args.lora, "needs peft: pip install kdcdiff[lora]"
    )
    from kdcdiff.data.image_folder import ImageFolder
    from kdcdiff.models.export import name_of, personal_card, save_distilled
    from kdcdiff.models.pipeline import at_resolution, image_size, load_pipeline
    from kdcdiff.store import claim
    from kdcdiff.training import personalize

    device, count = arguments.device_of(args), len(ImageFolder(args.subject))
    check(count <= MOST_PICTURES, "subject", str(args.subject), f"has {count} pictures; at most {MOST_PICTURES} are")
    work = args.out.with_name(args.out.name + ".work")
    asked = {name: value for name, value in vars(args).items() if name not in ("out", "device", "run")}
    claim(work / "settings.json", asked, "the work of another command")

    pipeline, subject = load_pipeline(args.pipeline).to(device), personalize.Subject(args.token, args.noun)
    side = image_size(at_resolution(pipeline, args.resolution or image_size(pipeline)))
    pictures = next(iter(ImageFolder(args.subject, MOST_PICTURES, size=side)))
    before = _scores(args, pipeline, subject, pictures)
    prior = _prior(args, pipeline, subject, work / "prior")
    own = _encoded(pipeline, pictures, subject.caption)
    if args.lora:
        personalize.add_lora(pipeline.unet, args.lora, args.seed)
    learnt = sum(p.numel() for p in pipeline.unet.parameters() if p.requires_grad)
    started = time.perf_counter()
    personalize.learn_subject(
        pipeline.unet, own, prior, pipeline.scheduler, steps=args.steps, batch=args.batch, lr=args.lr,
        prior_weight=args.prior_weight, seed=args.seed, folder=work / "training",
    )  # fmt: skip
    seconds = time.perf_counter() - started
    adapter = personalize.take_lora(pipeline.unet) if args.lora else None
    after = _scores(args, pipeline, subject, pictures)

    training = {
        "subject": f"{count} pictures",
        "parameters of the U-Net": _count(pipeline),
        "parameters learnt": learnt,
    }
    training |= {name: getattr(args, name) for name in ("steps", "batch", "lr", "prior_images", "prior_weight", "lora")}
    training |= {"seed": args.seed, "seconds of training, since it last began": f"{seconds:.1f}"}
    told = {
        f"{name}, {when}": value for when, own in (("before", before), ("after", after)) for name, value in own.items()
    }
    save_distilled(pipeline, personal_card(name_of(args.pipeline), subject.caption, training | told), args.out, adapter)
    for name, value in told.items():
        print(f"{name}: {value}")
    print(f"{learnt:,} parameters learnt in {seconds:.1f} s; ask for {subject.caption!r}; written to {args.out}")
    return 0


def _count(pipeline: StableDiffusionPipeline) -> int:
    return sum(p.numel() for p in pipeline.unet.parameters())


def _encoded(pipeline: StableDiffusionPipeline, pictures: Tensor, caption: str) -> LatentSet:
    from kdcdiff.data.image_set import captioned
    from kdcdiff.data.latents import encode_set

    return encode_set(pipeline, captioned(pictures, caption))


def _draw(args: argparse.Namespace, pipeline: StableDiffusionPipeline, prompts: list[str], seed: int) -> Tensor:
    from kdcdiff.sampling.generate import generate

    sampler = {"steps": args.sampler_steps, "guidance": args.guidance, "seed": seed}
    return generate(pipeline, prompts, **sampler)


def _prior(args: argparse.Namespace, pipeline: StableDiffusionPipeline, subject: Subject, folder: Path) -> LatentSet:
    """Draw the class as the pipeline knows it, once, and read its latents from `folder` when the command goes on."""
    from kdcdiff.data.latents import LatentSet

    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        partial.mkdir(exist_ok=True)
        drawn = _draw(args, pipeline, [subject.prior] * args.prior_images, args.seed + 1)
        _encoded(pipeline, drawn, subject.prior).save(partial)
        partial.rename(folder)
    return LatentSet.load(folder)


def _scores(
    args: argparse.Namespace, pipeline: StableDiffusionPipeline, subject: Subject, pictures: Tensor
) -> dict[str, Estimate]:
    """Draw the subject in every scene; measure how much it is the subject and, in domain, how much the scene."""
    from kdcdiff.metrics import extractors, fidelity
    from kdcdiff.metrics.published import published
    from kdcdiff.models.classifier import load_classifier
    from kdcdiff.models.pipeline import load_clip

    scenes = [scene for scene in SCENES for _ in range(args.images)]
    drawn = _draw(args, pipeline, [scene.format(f"{subject.token} {subject.noun}") for scene in scenes], args.seed)
    if args.extractor not in SHIPPED:
        extractor = published(args.extractor, args.weights).to(pipeline.device)
        return {"subject fidelity": fidelity.subject_fidelity(drawn, pictures, extractor)}
    extractor, clip = (
        extractors.features(load_classifier(args.extractor)).to(pipeline.device),
        extractors.Clip(*load_clip(args.extractor)).to(pipeline.device),
    )
    return {
        "subject fidelity": fidelity.subject_fidelity(drawn, pictures, extractor),
        "prompt fidelity": fidelity.prompt_fidelity(drawn, [scene.format(subject.noun) for scene in scenes], clip),
    }
