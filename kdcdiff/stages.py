"""The road's stages: each turns artifacts into the next artifact, and a notebook tells its story over them.

    pictures -> latents -> teacher -> student -> class-by-class -> images -> metrics

Every function takes the open `Chapter`, whose profile gives the sizes and whose store keeps the results. Whatever a
stage depends on is in its key, so chapters can ask for the same stage and it is made once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from kdcdiff import continual, data, pretrain, sampling, stack, surgery
from kdcdiff.chapter import Chapter
from kdcdiff.data import ImageSet, Source
from kdcdiff.distill import distill
from kdcdiff.latents import LatentSet, decode, encode, encode_set
from kdcdiff.losses import KDCLoss
from kdcdiff.metrics import Estimate, class_accuracy
from kdcdiff.store import Artifact


def source(chapter: Chapter) -> Source:
    """The chapter's data set and its classes, base and novel."""
    return data.open_source(chapter.dataset, chapter.profile.classes)


# --- pictures and latents ------------------------------------------------------------------------------------


def _pictures(chapter: Chapter, split: str) -> Artifact:
    where = source(chapter)
    count = chapter.profile.train_images if split == "train" else chapter.profile.test_images

    def make(work: Path) -> None:
        where.load(split, where.classes, count).save(work)

    return chapter.store.get(
        "pictures",
        make,
        params={"split": split, "count": count, "classes": where.classes},
        outside={"source": where.checksum()},
    )


def pictures(chapter: Chapter, split: str) -> ImageSet:
    """All classes' pictures of a split, ``train`` or ``test``."""
    return ImageSet.load(_pictures(chapter, split).path)


def _latents(chapter: Chapter) -> Artifact:
    pictures_, teacher_ = _pictures(chapter, "train"), _teacher(chapter)

    def make(work: Path) -> None:
        encode_set(teacher(chapter), ImageSet.load(pictures_.path)).save(work)

    inputs = {"pictures": pictures_} | ({"teacher": teacher_} if teacher_ else {})
    return chapter.store.get("latents", make, inputs=inputs, outside={"assets": stack.assets_key()})


def latents(chapter: Chapter) -> LatentSet:
    """The training pictures of all classes as the teacher's autoencoder and text encoder see them."""
    return LatentSet.load(_latents(chapter).path)


# --- the judge and the teacher -------------------------------------------------------------------------------


def judge(chapter: Chapter) -> stack.Classifier:
    """The independent classifier: the shipped one for flora; a folder's own, trained on its real images only."""
    if source(chapter).root is None:
        return stack.classifier()
    pictures_, steps = _pictures(chapter, "train"), chapter.profile.classifier_steps

    def make(work: Path) -> None:
        stack.save_classifier(
            pretrain.train_classifier(ImageSet.load(pictures_.path), steps, 64, chapter.seed, work), work
        )

    return stack.classifier(
        chapter.store.get(
            "judge", make, params={"steps": steps, "seed": chapter.seed}, inputs={"pictures": pictures_}
        ).path
    )


def scorer(chapter: Chapter) -> tuple[CLIPModel, CLIPTokenizer]:
    """The small CLIP of prompt alignment: the shipped one for flora; a folder's own, trained on all its classes."""
    if source(chapter).root is None:
        return stack.clip()
    pictures_, steps = _pictures(chapter, "train"), chapter.profile.classifier_steps

    def make(work: Path) -> None:
        images = ImageSet.load(pictures_.path)
        tokenizer = stack.train_tokenizer(images.captions)
        batch = min(128, len(images))
        model = pretrain.train_clip(images, tokenizer, steps, batch, chapter.seed, work, "scorer")
        model.save_pretrained(work, safe_serialization=True)
        tokenizer.save_pretrained(work)

    params = {"steps": steps, "seed": chapter.seed}
    return stack.clip(chapter.store.get("scorer", make, params=params, inputs={"pictures": pictures_}).path)


def _teacher(chapter: Chapter) -> Artifact | None:
    """None: the teacher ships. Otherwise the shipped one, fine-tuned on the folder's base classes."""
    where, profile = source(chapter), chapter.profile
    if where.root is None:
        return None
    pictures_ = _pictures(chapter, "train")
    params = {
        "eye_steps": profile.classifier_steps // 2,
        "autoencoder_steps": profile.autoencoder_steps,
        "steps": profile.teacher_steps,
        "batch": profile.distill_batch,
        "seed": chapter.seed,
        "teacher": profile.teacher,
    }

    def make(work: Path) -> None:
        pipeline, images = stack.load(profile.teacher), ImageSet.load(pictures_.path)
        pretrain.fine_tune(
            pipeline,
            images.of_classes(where.base),
            eye_steps=profile.classifier_steps // 2,
            autoencoder_steps=profile.autoencoder_steps,
            unet_steps=profile.teacher_steps,
            batch=profile.distill_batch,
            seed=chapter.seed,
            folder=work / "checkpoint",
        )
        pipeline.save_pretrained(work / "pipeline", safe_serialization=True)

    return chapter.store.get(
        "teacher", make, params=params, inputs={"pictures": pictures_}, outside={"assets": stack.assets_key()}
    )


def teacher(chapter: Chapter) -> StableDiffusionPipeline:
    """The teacher's pipeline."""
    made = _teacher(chapter)
    return stack.load(chapter.profile.teacher if made is None else made / "pipeline")


# --- the student ---------------------------------------------------------------------------------------------


RANDOM = "-random"  # ends the name of a student that starts from fresh weights, as BK-SDM's Table 3 has it


def untrained(unet: UNet2DConditionModel, name: str, seed: int) -> UNet2DConditionModel:
    """The student `name` of the teacher `unet` before training: a variant with carried weights, or `-random`."""
    if not name.endswith(RANDOM):
        return surgery.shrink(unet, name)
    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(surgery.student_config(unet.config, name.removesuffix(RANDOM)))


def _student(chapter: Chapter, variant: str, objective: KDCLoss) -> Artifact:
    profile, latents_ = chapter.profile, _latents(chapter)
    steps = profile.distill_steps if variant == profile.variant else profile.comparison_steps
    params = {
        "variant": variant,
        "steps": steps,
        "batch": profile.distill_batch,
        "lr": profile.learning_rate,
        "seed": chapter.seed,
        "alpha": objective.alpha,
        "beta": objective.beta,
        "gamma": objective.gamma,
        "temperature": objective.temperature,
    }

    def make(work: Path) -> None:
        pipeline = teacher(chapter)
        student = untrained(pipeline.unet, variant, chapter.seed)
        distill(
            student,
            pipeline.unet,
            latents(chapter).of_classes(source(chapter).base),
            pipeline.scheduler,
            objective,
            steps=steps,
            batch=profile.distill_batch,
            lr=profile.learning_rate,
            seed=chapter.seed,
            folder=work,
            describe=f"distilling {variant}",
        )
        student.save_pretrained(work / "unet", safe_serialization=True)

    return chapter.store.get("student", make, params=params, inputs={"latents": latents_})


def student(chapter: Chapter, variant: str, objective: KDCLoss | None = None) -> StableDiffusionPipeline:
    """The teacher's pipeline with a distilled student's U-Net in it; the profile's own variant trains for longer."""
    pipeline = teacher(chapter)
    folder = _student(chapter, variant, objective or objective_of(chapter)) / "unet"
    pipeline.unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True)
    return pipeline


def student_log(chapter: Chapter, variant: str) -> list[dict[str, float]]:
    """The student's training log: step, loss and the unweighted terms of equation (6)."""
    lines = (_student(chapter, variant, objective_of(chapter)) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def objective_of(chapter: Chapter) -> KDCLoss:
    """Equation (6) with the profile's weights."""
    p = chapter.profile
    return KDCLoss(alpha=p.alpha, beta=p.beta, gamma=p.gamma, temperature=p.temperature)


# --- generated pictures and their scores ---------------------------------------------------------------------


def prompts(classes: Sequence[str], count: int) -> list[str]:
    """`count` class captions for each class, class after class."""
    return [data.caption_of(name) for name in classes for _ in range(count)]


def generate(
    chapter: Chapter,
    pipeline: StableDiffusionPipeline,
    classes: Sequence[str],
    count: int,
    *,
    seed: int | None = None,
) -> ImageSet:
    """`count` pictures of each class from `pipeline`; labels count in the source's classes."""
    profile, known = chapter.profile, source(chapter).classes
    texts = prompts(classes, count)
    images = sampling.generate(
        pipeline,
        texts,
        seed=chapter.seed if seed is None else seed,
        steps=profile.sampler_steps,
        guidance=profile.guidance,
    )
    labels = torch.tensor([known.index(name) for name in classes]).repeat_interleave(count)
    return ImageSet(images, labels, tuple(texts), known)


def generated(chapter: Chapter, who: str) -> ImageSet:
    """Pictures of the base classes by the ``teacher``, or by the student of the variant `who`; kept in the store."""
    profile, where = chapter.profile, source(chapter)
    made = _teacher(chapter) if who == "teacher" else _student(chapter, who, objective_of(chapter))
    params = {
        "who": who,
        "count": profile.generated_images,
        "steps": profile.sampler_steps,
        "guidance": profile.guidance,
        "seed": chapter.seed,
        "classes": where.base,
    }

    def make(work: Path) -> None:
        pipeline = teacher(chapter) if who == "teacher" else student(chapter, who)
        generate(chapter, pipeline, where.base, profile.generated_images).save(work)

    return ImageSet.load(
        chapter.store.get(
            "generated",
            make,
            params=params,
            inputs={"model": made} if made else {},
            outside={"assets": stack.assets_key()},
        ).path
    )


def accuracy(chapter: Chapter, images: ImageSet) -> Estimate:
    """The share of `images` that the judge reads as the class they were asked to be."""
    return class_accuracy(images.images, images.labels, judge(chapter))


def reconstructed(chapter: Chapter, images: ImageSet) -> ImageSet:
    """`images` through the teacher's autoencoder and back."""
    vae = teacher(chapter).vae
    return replace(images, images=decode(vae, encode(vae, images.images)[0]), masks=None)


# --- class by class ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassByClass:
    """One method's run. `matrix` (stages, classes) of class accuracies, NaN where a class was not yet seen; `images`
    (stages, classes, n, 3, H, W) uint8; `retention` the base classes' accuracy at the end; `memory` in bytes."""

    order: tuple[str, ...]
    matrix: np.ndarray
    images: Tensor
    retention: float
    memory: int


def class_by_class(chapter: Chapter, method: str) -> ClassByClass:
    """The distilled student learns the novel classes one after another by `method`; measured after every class."""
    profile, where, variant = chapter.profile, source(chapter), chapter.profile.variant
    student_, latents_ = _student(chapter, variant, objective_of(chapter)), _latents(chapter)
    order = where.novel[: profile.continual_classes]
    params = {
        "method": method,
        "order": order,
        "steps": profile.continual_steps,
        "batch": profile.continual_batch,
        "lr": profile.continual_rate,
        "capacity": profile.capacity,
        "policy": profile.policy,
        "count": profile.continual_images,
        "sampler": [profile.sampler_steps, profile.guidance],
        "seed": chapter.seed,
    }

    def make(work: Path) -> None:
        pipeline, classifier = student(chapter, variant), judge(chapter)
        stages = 1 if method == "joint" else len(order)
        count, side = profile.continual_images, where.size
        matrix = torch.full((stages, len(order)), float("nan"), dtype=torch.float64)
        images = torch.full((stages, len(order), count, 3, side, side), 255, dtype=torch.uint8)

        def measure(stage: int, unet: UNet2DConditionModel) -> None:
            pipeline.unet = unet
            seen = order if method == "joint" else order[: stage + 1]
            made = generate(chapter, pipeline, seen, count)
            for j in range(len(seen)):
                part = slice(j * count, (j + 1) * count)
                images[stage, j] = made.images[part]
                matrix[stage, j] = class_accuracy(made.images[part], made.labels[part], classifier).value

        memory = continual.learn(
            pipeline.unet,
            latents(chapter),
            order,
            pipeline.scheduler,
            method,
            steps=profile.continual_steps,
            batch=profile.continual_batch,
            lr=profile.continual_rate,
            capacity=profile.capacity,
            policy=profile.policy,
            seed=chapter.seed,
            folder=work / "checkpoint",
            after_stage=measure,
        )
        base = generate(chapter, pipeline, where.base, max(2, count // 2))
        retention = class_accuracy(base.images, base.labels, classifier).value
        save_file({"matrix": matrix, "images": images}, work / "run.safetensors")
        (work / "run.json").write_text(json.dumps({"order": order, "retention": retention, "memory": memory}))

    inputs = {"student": student_, "latents": latents_}
    made = chapter.store.get("class-by-class", make, params=params, inputs=inputs)
    tensors, words = load_file(made / "run.safetensors"), json.loads((made / "run.json").read_text())
    return ClassByClass(
        tuple(words["order"]),
        tensors["matrix"].numpy(),
        tensors["images"],
        words["retention"],
        words["memory"],
    )
