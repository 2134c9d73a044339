"""The road's stages: each turns artifacts into the next artifact, and a notebook tells its story over them.

    images -> latents -> teacher -> student -> class by class -> generated images -> metrics

Every function takes a `Run`, whose profile gives the sizes and whose store keeps the results. The settings that a
stage is keyed by are the ones that its work is called with: nothing else of the profile reaches it, so chapters can
ask for the same stage and it is made once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from kdcdiff.data.image_set import ImageSet, caption_of
from kdcdiff.data.latents import LatentSet, decode, encode, encode_set
from kdcdiff.experiments.run import Run
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate, ratio
from kdcdiff.models import influence, surgery, timing
from kdcdiff.models.classifier import Classifier, load_classifier, save_classifier
from kdcdiff.models.export import save_portable
from kdcdiff.models.pipeline import IMAGE_SIZE, at_resolution, load_clip, load_pipeline, train_tokenizer
from kdcdiff.models.shipped import SHIPPED, assets_key, shipped_for
from kdcdiff.sampling import generate as sampling
from kdcdiff.store import Artifact
from kdcdiff.training.components import fine_tune, train_classifier, train_clip
from kdcdiff.training.distill import distill
from kdcdiff.training.losses import DistillationLoss, KDCLoss

CLASSIFIER_BATCH = 64


def made(**artifacts: Artifact | None) -> dict[str, Artifact]:
    """Return the inputs of a stage, without those that ship and are named by `external_inputs`."""
    return {name: artifact for name, artifact in artifacts.items() if artifact is not None}


def external_inputs(run: Run) -> dict[str, str]:
    """What a stage that reads a model names as its outside input: the shipped files, and any other teacher."""
    name, ships, own = run.teacher, shipped_for(run.dataset), run.profile.resolution
    named = {} if name == ships else {"teacher": assets_key(name) if name in SHIPPED else name}
    return {"assets": assets_key(ships)} | named | ({} if own is None else {"resolution": str(own)})


# --- images and latents --------------------------------------------------------------------------------------


def images_artifact(run: Run, split: str) -> Artifact:
    """The stage behind `images`."""

    def make(folder: Path, *, split: str, classes: Sequence[str], count: int, size: int = IMAGE_SIZE) -> None:
        run.source.load(split, classes, count, size).save(folder)

    count = run.profile.train_images if split == "train" else run.profile.test_images
    settings = {"split": split, "classes": run.source.classes, "count": count}
    if run.resolution != IMAGE_SIZE:  # the shipped stack's: stores have its pictures under a key that names no size
        settings["size"] = run.resolution
    return run.store.get("images", make, settings=settings, external={"source": run.source.checksum()})


def images(run: Run, split: str) -> ImageSet:
    """All classes' pictures of a split, ``train`` or ``test``."""
    return ImageSet.load(images_artifact(run, split).path)


def latents_artifact(run: Run, split: str = "train") -> Artifact:
    """The stage behind `latents`."""
    pictures = images_artifact(run, split)

    def make(folder: Path) -> None:
        encode_set(teacher(run), ImageSet.load(pictures.path)).save(folder)

    inputs = made(images=pictures, teacher=teacher_artifact(run))
    return run.store.get("latents", make, inputs=inputs, external=external_inputs(run))


def latents(run: Run, split: str = "train") -> LatentSet:
    """A split's pictures of all classes as the teacher's autoencoder and text encoder see them."""
    return LatentSet.load(latents_artifact(run, split).path)


# --- the classifier, the CLIP and the teacher ----------------------------------------------------------------


def classifier_artifact(run: Run) -> Artifact | None:
    """The stage behind `classifier`; None: it ships."""
    if run.source.ships:
        return None
    pictures = images_artifact(run, "train")

    def make(folder: Path, *, steps: int, batch: int, seed: int, side: int | None = None) -> None:
        known = ImageSet.load(pictures.path)
        save_classifier(train_classifier(known, steps, batch, seed, folder, device=run.device, side=side), folder)

    settings = {"steps": run.profile.classifier_steps, "batch": CLASSIFIER_BATCH, "seed": run.seed}
    if run.resolution > run.profile.judge_size:
        settings["side"] = run.profile.judge_size
    return run.store.get("classifier", make, settings=settings, inputs=made(images=pictures))


def classifier(run: Run) -> Classifier:
    """The independent classifier: the one that ships; a folder's own, trained on its real images only."""
    artifact = classifier_artifact(run)
    model = load_classifier(artifact.path if artifact else run.dataset)
    model.dataset = run.dataset_word
    return run.place(model)


def clip_artifact(run: Run) -> Artifact | None:
    """The stage behind `clip`; None: it ships."""
    if run.source.ships:
        return None
    pictures = images_artifact(run, "train")

    def make(folder: Path, *, steps: int, batch: int, seed: int) -> None:
        known = ImageSet.load(pictures.path)
        tokenizer = train_tokenizer(known.captions)
        model = train_clip(known, tokenizer, steps, min(batch, len(known)), seed, folder, "clip", run.device)
        save_portable(model, folder)
        save_portable(tokenizer, folder)

    settings = {"steps": run.profile.classifier_steps, "batch": 128, "seed": run.seed}
    return run.store.get("clip", make, settings=settings, inputs=made(images=pictures))


def clip(run: Run) -> tuple[CLIPModel, CLIPTokenizer]:
    """The small CLIP of prompt alignment: the one that ships; a folder's own, trained on all its classes."""
    artifact = clip_artifact(run)
    model, tokenizer = load_clip(artifact.path if artifact else run.dataset)
    model.config.dataset = run.dataset_word
    return run.place(model), tokenizer


def teacher_artifact(run: Run) -> Artifact | None:
    """The stage behind `teacher`; None: it ships. Otherwise the profile's, fine-tuned on the folder's base classes."""
    if run.source.ships:
        return None
    profile, pictures = run.profile, images_artifact(run, "train")

    def make(folder: Path, *, teacher: str, classes: Sequence[str], **sizes: int) -> None:
        own = ImageSet.load(pictures.path).of_classes(classes)
        pipeline = run.place(at_resolution(load_pipeline(teacher), own.images.shape[-1]))
        fine_tune(pipeline, own, folder=folder / "checkpoint", **sizes)
        save_portable(pipeline, folder / "pipeline")

    settings = {
        "teacher": run.teacher,
        "classes": run.source.base,
        "perceptual_net_steps": profile.classifier_steps // 2,
        "autoencoder_steps": profile.autoencoder_steps,
        "unet_steps": profile.teacher_steps,
        "batch": profile.distill_batch,
        "seed": run.seed,
    }
    return run.store.get(
        "teacher",
        make,
        settings=settings,
        inputs=made(images=pictures),
        external={"assets": assets_key(shipped_for(run.dataset))},
    )


def teacher(run: Run) -> StableDiffusionPipeline:
    """The teacher's pipeline, on the run's device."""
    artifact = teacher_artifact(run)
    pipeline = load_pipeline(run.teacher if artifact is None else artifact / "pipeline")
    return run.place(at_resolution(pipeline, run.resolution))


def judged_inputs(run: Run) -> dict[str, Artifact]:
    """Name what a stage reads that trains a student and judges it: both splits' latents, and the classifier."""
    splits = {split: latents_artifact(run, split) for split in ("train", "test")}
    return made(**splits, classifier=classifier_artifact(run))


# --- the student ---------------------------------------------------------------------------------------------


RANDOM = "-random"  # ends the name of a student that starts from fresh weights, as BK-SDM's Table 3 has it
COMPARED = ("bk-sdm-base", "bk-sdm-base" + RANDOM)  # with the profile's own variant, for fewer steps


def students(run: Run) -> list[str]:
    """The names of the book's students: the profile's own variant, then those that it is compared with."""
    own = run.profile.variant
    return [own, *(name for name in COMPARED if name != own)]


def init_student(unet: UNet2DConditionModel, name: str, seed: int) -> UNet2DConditionModel:
    """Make the student `name` of the teacher `unet`, untrained: a variant with carried weights, or `-random`."""
    if not name.endswith(RANDOM):
        return surgery.shrink(unet, name)
    torch.manual_seed(seed)
    fresh = UNet2DConditionModel.from_config(surgery.student_config(unet.config, name.removesuffix(RANDOM)))
    return fresh.to(unet.device)


def kdc_loss(run: Run) -> KDCLoss:
    """Equation (6) of KDC-Diff with the profile's weights."""
    p = run.profile
    return KDCLoss(alpha=p.alpha, beta=p.beta, gamma=p.gamma, temperature=p.temperature)


def student_artifact(
    run: Run, name: str, objective: DistillationLoss | None = None, seed: int | None = None
) -> Artifact:
    """The stage behind `student`: its ``unet`` and ``log.jsonl``. The profile's own variant trains for longer."""
    profile = run.profile

    def make(
        folder: Path, *, name: str, classes: Sequence[str], objective: DistillationLoss, seed: int,
        steps: int, batch: int, lr: float,
    ) -> None:  # fmt: skip
        pipeline = teacher(run)
        student = init_student(pipeline.unet, name, seed)
        distill(
            student, pipeline.unet, latents(run).of_classes(classes), pipeline.scheduler, objective,
            steps=steps, batch=batch, lr=lr, seed=seed, folder=folder, describe=f"distilling {name}",
        )  # fmt: skip
        save_portable(student, folder / "unet")

    settings = {
        "name": name,
        "classes": run.source.base,
        "objective": objective or kdc_loss(run),
        "seed": run.seed if seed is None else seed,
        "steps": profile.distill_steps if name == profile.variant else profile.comparison_steps,
        "batch": profile.distill_batch,
        "lr": profile.learning_rate,
    }
    return run.store.get("student", make, settings=settings, inputs=made(latents=latents_artifact(run)))


def student(
    run: Run, name: str, objective: DistillationLoss | None = None, seed: int | None = None
) -> StableDiffusionPipeline:
    """The teacher's pipeline with a distilled student's U-Net in it; equation (6) and the run's seed unless given."""
    pipeline, folder = teacher(run), student_artifact(run, name, objective, seed) / "unet"
    pipeline.unet = run.place(UNet2DConditionModel.from_pretrained(folder, use_safetensors=True))
    return pipeline


def student_log(run: Run, name: str) -> list[dict[str, float]]:
    """The student's training log: step, loss and the unweighted terms of its objective."""
    return [json.loads(line) for line in (student_artifact(run, name) / "log.jsonl").read_text().splitlines()]


# --- generated images and their scores -----------------------------------------------------------------------


def prompts(classes: Sequence[str], count: int) -> list[str]:
    """`count` class captions for each class, class after class."""
    return [caption_of(name) for name in classes for _ in range(count)]


def draw(
    pipeline: StableDiffusionPipeline, known: Sequence[str], classes: Sequence[str], count: int, **sampler: Any
) -> ImageSet:
    """Draw `count` pictures of each of `classes`; labels count in `known`. `sampler`: seed, steps, guidance."""
    texts = prompts(classes, count)
    labels = torch.tensor([list(known).index(name) for name in classes]).repeat_interleave(count)
    return ImageSet(sampling.generate(pipeline, texts, **sampler), labels, tuple(texts), tuple(known))


def generate(run: Run, pipeline: StableDiffusionPipeline, classes: Sequence[str], count: int) -> ImageSet:
    """Draw `count` pictures of each of `classes` at the profile's sampler settings and the run's seed."""
    sampler = {"seed": run.seed, "steps": run.profile.sampler_steps, "guidance": run.profile.guidance}
    return draw(pipeline, run.source.classes, classes, count, **sampler)


def generated_artifact(run: Run, who: str) -> Artifact:
    """The stage behind `generated`."""
    profile = run.profile

    def make(
        folder: Path, *, who: str, known: Sequence[str], classes: Sequence[str], count: int, **sampler: Any
    ) -> None:
        pipeline = teacher(run) if who == "teacher" else student(run, who)
        draw(pipeline, known, classes, count, **sampler).save(folder)

    settings = {
        "who": who,
        "known": run.source.classes,
        "classes": run.source.base,
        "count": profile.generated_images,
        "seed": run.seed,
        "steps": profile.sampler_steps,
        "guidance": profile.guidance,
    }
    model = teacher_artifact(run) if who == "teacher" else student_artifact(run, who)
    return run.store.get("generated", make, settings=settings, inputs=made(model=model), external=external_inputs(run))


def generated(run: Run, who: str) -> ImageSet:
    """Pictures of the base classes by the ``teacher``, or by the student of the variant `who`."""
    return ImageSet.load(generated_artifact(run, who).path)


def accuracy(run: Run, images: ImageSet) -> Estimate:
    """The share of `images` that the classifier reads as the class they were asked to be."""
    return class_accuracy(images.images, images.labels, classifier(run))


def reconstructed(run: Run, images: ImageSet) -> ImageSet:
    """`images` through the teacher's autoencoder and back."""
    vae = teacher(run).vae
    return replace(images, images=decode(vae, encode(vae, images.images)[0]), masks=None)


# --- surgery without retraining, and what calls cost ---------------------------------------------------------


AMPUTATIONS = (
    "original",
    "mid-removed",
    "fewer-pairs",
    "down-removed",
    "down-up-removed",
    "kdc-described",
    "kdc-printed",
)
BYPASSED = "down-bypassed"  # `influence.bypassed`: DownBlock2D hands on what it gets, and UpBlock2D keeps its layers


def amputated(run: Run, count: int) -> dict[str, ImageSet]:
    """Pictures of the base classes by the teacher after each of `AMPUTATIONS`, untrained, from the same noise."""

    def make(
        folder: Path, *, names: Sequence[str], known: Sequence[str], classes: Sequence[str], **drawing: Any
    ) -> None:
        pipeline = teacher(run)
        whole, innermost = pipeline.unet, f"down_blocks.{len(pipeline.unet.down_blocks) - 1}"
        for name in names:
            (folder / name).mkdir()
            pipeline.unet = whole if name == BYPASSED else surgery.shrink(whole, name)
            with influence.bypassed(pipeline.unet, *[innermost] * (name == BYPASSED)):
                draw(pipeline, known, classes, **drawing).save(folder / name)

    profile = run.profile
    names = (*AMPUTATIONS, BYPASSED)
    settings = {
        "names": names,
        "known": run.source.classes,
        "classes": run.source.base,
        "count": count,
        "seed": run.seed,
        "steps": profile.sampler_steps,
        "guidance": profile.guidance,
    }
    inputs, external = made(teacher=teacher_artifact(run)), external_inputs(run)
    artifact = run.store.get("amputated", make, settings=settings, inputs=inputs, external=external)
    return {name: ImageSet.load(artifact / name) for name in names}


LEVELS = 8  # of noise at which parts are bypassed
ALIVE = 0.01  # the least relative change of the prediction at which a part is said to do something


def part_influence(run: Run) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Return time steps, and how far the teacher's prediction moves there without each part: part -> (levels, N).

    On held-out latents of the base classes, N of them, evenly taken; the parts are what the variants remove.
    """
    pipeline, held = teacher(run), latents(run, "test").of_classes(run.source.base)
    pictures = run.profile.influence_images
    rows = torch.arange(0, len(held), max(1, len(held) // pictures))[:pictures]
    steps = influence.spread(pipeline.scheduler, LEVELS)
    prompts = held.prompts[held.captions[rows]]
    return steps, influence.influence(pipeline.unet, pipeline.scheduler, held.mean[rows], prompts, steps)


def full_size_seconds(run: Run, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each network of the papers' size, with random weights, round by round."""

    def make(folder: Path, *, names: Sequence[str], rounds: int, side: int, device: str) -> None:
        seconds = timing.rounds_of(timing.full_size(names, device=device), rounds, latent=side)
        (folder / "seconds.json").write_text(json.dumps(seconds))

    settings = {"names": tuple(names), "rounds": rounds, "side": run.profile.latency_side, "device": run.device}
    return json.loads((run.store.get("latency", make, settings=settings) / "seconds.json").read_text())


def time_ratios(seconds: dict[str, list[float]], reference: str) -> dict[str, Estimate]:
    """Each network's time over that of `reference`, round by round: geometric means with Student's interval."""
    return {name: ratio(own, seconds[reference]) for name, own in seconds.items()}
