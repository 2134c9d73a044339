"""Class-by-class training as a stage: the distilled student learns new classes by each method, and is measured.

Nothing here trains: that is `kdcdiff.training.continual`. This room feeds it, and looks after every class.
"""

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

from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import LatentSet, encode, encode_set, origin_of
from kdcdiff.experiments import stages
from kdcdiff.experiments.run import Run
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.training import continual


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


def class_order(run: Run, repetition: int) -> tuple[str, ...]:
    """The novel classes in the order of a repetition: the source's own for number 0, then seeded shuffles."""
    classes = run.source.novel[: run.profile.continual_classes]
    if repetition == 0:
        return classes
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(run.seed * 1009 + repetition))
    return tuple(classes[k] for k in order.tolist())


def class_by_class(
    run: Run, method: str, *, repetition: int = 0, capacity: int | None = None, codec: str = "fp16"
) -> ClassByClass:
    """The distilled student learns the novel classes one after another by `method`; measured after every class.

    `repetition` numbers runs, each with a seed and an order of its own; `capacity` replaces the profile's.
    """
    profile = run.profile

    def make(
        folder: Path, *, method: str, order: Sequence[str], base: Sequence[str], variant: str, count: int,
        guidance: float, sampler_steps: int, seed: int, **training: object,
    ) -> None:  # fmt: skip
        pipeline, judge = stages.student(run, variant), stages.classifier(run)
        known, joint = run.source.classes, continual.METHODS[method].joint
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        matrix = torch.full((1 if joint else len(order), len(order)), float("nan"), dtype=torch.float64)
        seen_images = torch.full((*matrix.shape, count, 3, side, side), 255, dtype=torch.uint8)

        def draw(unet: UNet2DConditionModel, classes: Sequence[str], count: int) -> ImageSet:
            pipeline.unet = unet
            return stages.draw(pipeline, known, classes, count, seed=seed, steps=sampler_steps, guidance=guidance)

        def scores(drawn: ImageSet, classes: int) -> list[float]:
            parts = zip(drawn.images.chunk(classes), drawn.labels.chunk(classes), strict=True)
            return [class_accuracy(images, labels, judge).value for images, labels in parts]

        def measure(stage: int, unet: UNet2DConditionModel) -> None:
            shown = order if joint else order[: stage + 2]  # with the next one, for forward transfer
            drawn = draw(unet, shown, count)
            matrix[stage, : len(shown)] = torch.tensor(scores(drawn, len(shown)), dtype=torch.float64)
            learnt = len(shown) if joint else stage + 1
            seen_images[stage, :learnt] = drawn.images.unflatten(0, (len(shown), count))[:learnt]

        def generate(unet: UNet2DConditionModel, classes: Sequence[str], count: int) -> LatentSet:
            return encode_set(pipeline, draw(unet, classes, count))

        before = scores(draw(pipeline.unet, order, count), len(order))
        memory = continual.learn(
            pipeline.unet, stages.latents(run), order, pipeline.scheduler, method,
            seed=seed, folder=folder / "checkpoint", origin=origin_of(pipeline.vae),
            pixels=stages.images(run, "train").images, encoder=lambda pixels: encode(pipeline.vae, pixels)[0],
            generate=generate, after_stage=measure, **training,
        )  # fmt: skip
        old = draw(pipeline.unet, base, max(2, count // 2))
        words = {"before": before, "retention": class_accuracy(old.images, old.labels, judge).value, "memory": memory}
        save_file({"matrix": matrix, "images": seen_images}, folder / "run.safetensors")
        (folder / "run.json").write_text(json.dumps(words))

    settings = {
        "method": method,
        "order": class_order(run, repetition),
        "base": run.source.base,
        "variant": profile.variant,
        "count": profile.continual_images,
        "guidance": profile.guidance,
        "sampler_steps": profile.continual_sampler_steps,
        "seed": run.seed + repetition,
        "steps": profile.continual_steps,
        "batch": profile.continual_batch,
        "lr": profile.continual_rate,
        "ema": profile.continual_ema,
        "capacity": profile.capacity if capacity is None else capacity,
        "policy": profile.policy,
        "codec": codec,
    }
    inputs = stages.made(
        student=stages.student_artifact(run, profile.variant),
        latents=stages.latents_artifact(run),
        images=stages.images_artifact(run, "train"),
        classifier=stages.classifier_artifact(run),
    )
    artifact = run.store.get(
        "class-by-class", make, settings=settings, inputs=inputs, external=stages.external_inputs(run)
    )
    tensors, words = load_file(artifact / "run.safetensors"), json.loads((artifact / "run.json").read_text())
    return ClassByClass(
        settings["order"], tensors["matrix"].numpy(), np.array(words["before"]), tensors["images"],
        words["retention"], words["memory"], artifact.manifest["seconds"], artifact.manifest["peak_bytes"],
    )  # fmt: skip
