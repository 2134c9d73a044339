"""Class-by-class training as a stage: each method's run, measured after every class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcdiff.book.chapter import Chapter
from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import LatentSet, encode, encode_set, origin_of
from kdcdiff.experiments import stages
from kdcdiff.experiments.stages import (
    classifier,
    generate,
    kdc_loss,
    latents,
    latents_artifact,
    source,
    student,
    student_artifact,
)
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.training import continual

# --- class by class ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassByClass:
    """One method's run. `matrix` (stages, classes) of class accuracies, NaN where a class is further away than the
    next; `before` (classes,) the accuracies of the student that has seen none of them; `images` (stages, classes, n, 3,
    H, W) uint8; `retention` the base classes' accuracy at the end; `memory` in bytes; `seconds`, `peak_bytes` of all.
    """

    order: tuple[str, ...]
    matrix: np.ndarray
    before: np.ndarray
    images: Tensor
    retention: float
    memory: int
    seconds: float
    peak_bytes: int


def class_order(chapter: Chapter, run: int) -> tuple[str, ...]:
    """The novel classes in the order of run number `run`: the source's own, then seeded shuffles."""
    classes = source(chapter).novel[: chapter.profile.continual_classes]
    if run == 0:
        return classes
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(chapter.seed * 1009 + run))
    return tuple(classes[k] for k in order.tolist())


def class_by_class(
    chapter: Chapter, method: str, *, run: int = 0, capacity: int | None = None, codec: str = "fp16"
) -> ClassByClass:
    """The distilled student learns the novel classes one after another by `method`; measured after every class.

    `run` numbers repetitions, each with a seed and an order of its own; `capacity` replaces the profile's.
    """
    profile, where, variant = chapter.profile, source(chapter), chapter.profile.variant
    student_, latents_ = student_artifact(chapter, variant, kdc_loss(chapter)), latents_artifact(chapter)
    order, seed = class_order(chapter, run), chapter.seed + run
    capacity = profile.capacity if capacity is None else capacity
    params = {
        "method": method,
        "order": order,
        "steps": profile.continual_steps,
        "batch": profile.continual_batch,
        "lr": profile.continual_rate,
        "ema": profile.continual_ema,
        "capacity": capacity,
        "policy": profile.policy,
        "codec": codec,
        "count": profile.continual_images,
        "sampler": [profile.continual_sampler_steps, profile.guidance],
        "seed": seed,
    }

    def make(work: Path) -> None:
        pipeline, judge = student(chapter, variant), classifier(chapter)
        count_of_stages = 1 if method == "joint" else len(order)
        count, side = profile.continual_images, where.size
        matrix = torch.full((count_of_stages, len(order)), float("nan"), dtype=torch.float64)
        drawings = torch.full((count_of_stages, len(order), count, 3, side, side), 255, dtype=torch.uint8)

        def drawn(unet: UNet2DConditionModel, classes: Sequence[str], count: int) -> ImageSet:
            pipeline.unet = unet
            return generate(chapter, pipeline, classes, count, seed=seed, steps=profile.continual_sampler_steps)

        def scores(made: ImageSet, classes: int) -> list[float]:
            parts = zip(made.images.chunk(classes), made.labels.chunk(classes), strict=True)
            return [class_accuracy(images, labels, judge).value for images, labels in parts]

        def measure(stage: int, unet: UNet2DConditionModel) -> None:
            seen = order if method == "joint" else order[: stage + 2]  # with the next one, for forward transfer
            made = drawn(unet, seen, count)
            matrix[stage, : len(seen)] = torch.tensor(scores(made, len(seen)), dtype=torch.float64)
            known = len(seen) if method == "joint" else stage + 1
            drawings[stage, :known] = made.images.unflatten(0, (len(seen), count))[:known]

        def dream(unet: UNet2DConditionModel, classes: Sequence[str], count: int) -> LatentSet:
            return encode_set(pipeline, drawn(unet, classes, count))

        before = scores(drawn(pipeline.unet, order, count), len(order))
        memory = continual.learn(
            pipeline.unet,
            latents(chapter),
            order,
            pipeline.scheduler,
            method,
            steps=profile.continual_steps,
            batch=profile.continual_batch,
            lr=profile.continual_rate,
            ema=profile.continual_ema,
            capacity=capacity,
            policy=profile.policy,
            codec=codec,
            seed=seed,
            folder=work / "checkpoint",
            origin=origin_of(pipeline.vae),
            pixels=stages.images(chapter, "train").images,
            encoder=lambda images: encode(pipeline.vae, images)[0],
            generate=dream,
            after_stage=measure,
        )
        base = drawn(pipeline.unet, where.base, max(2, count // 2))
        words = {
            "order": order,
            "before": before,
            "retention": class_accuracy(base.images, base.labels, judge).value,
            "memory": memory,
        }
        save_file({"matrix": matrix, "images": drawings}, work / "run.safetensors")
        (work / "run.json").write_text(json.dumps(words))

    inputs = {"student": student_, "latents": latents_}
    made = chapter.store.get("class-by-class", make, version=2, params=params, inputs=inputs)
    tensors, words = load_file(made / "run.safetensors"), json.loads((made / "run.json").read_text())
    return ClassByClass(
        tuple(words["order"]),
        tensors["matrix"].numpy(),
        np.array(words["before"]),
        tensors["images"],
        words["retention"],
        words["memory"],
        made.manifest["seconds"],
        made.manifest["peak_bytes"],
    )
