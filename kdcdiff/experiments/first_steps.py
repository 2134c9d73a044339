"""A student's first steps, watched: what it draws on the way, beside its teacher and from the same noise.

A distillation's first 50 steps are its warm-up, in which nothing depends on how many steps are to come. So they can be
made again by themselves, to the very weights that the whole training passed through, at a small part of its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcdiff.experiments import stages
from kdcdiff.experiments.run import Run
from kdcdiff.store import Artifact
from kdcdiff.training.distill import distill
from kdcdiff.training.losses import DistillationLoss

WARMUP = 50  # steps of `distill`'s warm-up
FRAMES = 5  # at which the student draws on the way


def first_steps_artifact(run: Run) -> Artifact:
    """The stage behind `first_steps`."""
    profile = run.profile

    def make(
        folder: Path, *, name: str, known: Sequence[str], classes: Sequence[str], objective: DistillationLoss,
        seed: int, every: int, steps: int, batch: int, lr: float, sampler_steps: int, guidance: float,
    ) -> None:  # fmt: skip
        pipeline = stages.teacher(run)
        whole = pipeline.unet

        def draw(frame: str, drawing: StableDiffusionPipeline) -> None:
            drawing.unet.to(memory_format=torch.channels_last)  # as training has it: the same sums in the same order
            drawn = stages.draw(drawing, known, classes, 1, seed=seed, steps=sampler_steps, guidance=guidance)
            save_file({"images": drawn.images.contiguous()}, folder / f"{frame}.safetensors")

        def watch(step: int) -> None:
            draw(str(step), pipeline)

        draw("teacher", pipeline)
        draw("end", stages.student(run, name))
        pipeline.unet = stages.init_student(whole, name, seed)
        watch(0)
        distill(
            pipeline.unet, whole, stages.latents(run).of_classes(classes), pipeline.scheduler, objective,
            steps=steps, batch=batch, lr=lr, seed=seed, folder=folder / "checkpoint", warmup=WARMUP,
            watch=watch, watch_every=every, describe=f"first steps of {name}",
        )  # fmt: skip

    steps = min(WARMUP, profile.distill_steps)
    settings = {
        "name": profile.variant,
        "known": run.source.classes,
        "classes": run.source.base,
        "objective": stages.kdc_loss(run),
        "seed": run.seed,
        "every": max(1, steps // FRAMES),
        "steps": steps,
        "batch": profile.distill_batch,
        "lr": profile.learning_rate,
        "sampler_steps": profile.sampler_steps,
        "guidance": profile.guidance,
    }
    inputs = stages.made(student=stages.student_artifact(run, profile.variant), latents=stages.latents_artifact(run))
    return run.store.get("first-steps", make, settings=settings, inputs=inputs, external=stages.external_inputs(run))


def first_steps(run: Run) -> tuple[Tensor, dict[int, Tensor]]:
    """The teacher's picture of each base class (C, 3, H, W), and the student's, from the same noise, by its steps."""
    folder = first_steps_artifact(run).path
    images = {path.stem: load_file(path)["images"] for path in sorted(folder.glob("*.safetensors"))}
    teacher, end = images.pop("teacher"), images.pop("end")
    found = {int(step): own for step, own in images.items()} | {run.profile.distill_steps: end}
    return teacher, dict(sorted(found.items()))
