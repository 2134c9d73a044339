"""Students that differ in their objective and in nothing else: what each term of a loss is worth.

Students of one seed start from the same weights, see the same batches, and share one teacher forward a step; seeds
repeat the whole. Every student is then read three ways: by the classifier on what it draws, by its error on held-out
latents, and by its distance from the teacher there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.numpy import load_file, save_file

from kdcdiff.data.latents import LatentSet, denoising_batch
from kdcdiff.errors import check
from kdcdiff.experiments import parallel, stages
from kdcdiff.experiments.run import Run
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate, over_seeds
from kdcdiff.models import surgery
from kdcdiff.process import computing
from kdcdiff.store import Artifact
from kdcdiff.training.distill import distill_together
from kdcdiff.training.losses import BKSDMLoss, DistillationLoss, KDCLoss

MEASURES = {  # what is read of each student, and its unit
    "accuracy": "class accuracy",
    "error": "held-out denoising error",
    "distance": "held-out squared distance to the teacher's output",
}


def objectives(run: Run) -> dict[str, DistillationLoss]:
    """Objectives that part ways in one term each, the profile's weights where a weight is asked for."""
    p = run.profile
    return {
        "task": BKSDMLoss(output=0, feature=0),  # the denoising loss alone
        "task + output": BKSDMLoss(output=1, feature=0),
        "task + output + feature": BKSDMLoss(output=1, feature=p.beta),
        "task + soft": KDCLoss(alpha=1, beta=0, gamma=p.gamma, temperature=p.temperature),
        "task + hard": KDCLoss(alpha=0, beta=0, gamma=p.gamma, temperature=p.temperature),
        "total": stages.kdc_loss(run),
    }


def grid(
    first: str, values: Sequence[float], second: str, others: Sequence[float], base: KDCLoss
) -> dict[str, DistillationLoss]:
    """Equation (6) with two of its weights over a grid; names are ``first=value, second=value``."""
    cells = [(a, b) for a in values for b in others]
    weights: list[dict[str, Any]] = [{first: a, second: b} for a, b in cells]
    names = [f"{first}={a:g}, {second}={b:g}" for a, b in cells]
    return {name: replace(base, **own) for name, own in zip(names, weights, strict=True)}


@dataclass(frozen=True)
class Ablation:
    """`scores` maps each of `MEASURES` to (students, seeds); `n` pictures of each were judged; `logs` are by seed."""

    names: tuple[str, ...]
    scores: dict[str, np.ndarray]
    n: int
    logs: tuple[list[dict[str, float]], ...]

    def mean(self, measure: str, name: str) -> Estimate:
        """A student's mean over the seeds."""
        within = (0.0, 1.0 if measure == "accuracy" else np.inf)
        return over_seeds(self.scores[measure][self.names.index(name)], MEASURES[measure], within)

    def gain(self, measure: str, name: str, over: str) -> Estimate:
        """How much more `name` has than `over`: the mean of the differences, seed by seed."""
        row = self.scores[measure]
        return over_seeds(row[self.names.index(name)] - row[self.names.index(over)], MEASURES[measure])

    def rows(self, names: Sequence[str] | None = None) -> list[dict[str, str | Estimate]]:
        """A table's rows: each student (all, or `names`) with its mean of every measure."""
        return [{"student": name, **{unit: self.mean(measure, name) for measure, unit in MEASURES.items()}}
                for name in names or self.names]  # fmt: skip


@torch.no_grad()
def heldout_errors(
    unet: UNet2DConditionModel,
    teacher: UNet2DConditionModel,
    latents: LatentSet,
    scheduler: DDIMScheduler,
    seed: int,
    batch: int = 128,
) -> tuple[float, float]:
    """(mean squared error against the target, against the teacher's output) on every row of `latents`, at seeded noise
    and timesteps: the same for whichever network is asked."""
    generator, sums = torch.Generator().manual_seed(seed), np.zeros(2)
    for rows in torch.arange(len(latents)).split(batch):
        data = denoising_batch(latents, rows, scheduler, generator, dropout=0.0).to(unet.device)
        inputs = (data.noisy, data.timestep, data.prompt)
        with computing(unet.device):
            made, wanted = (net(*inputs, return_dict=False)[0].float() for net in (unet, teacher))
        sums += [((made - other) ** 2).mean().item() * len(rows) for other in (data.target, wanted)]
    error, distance = sums / len(latents)
    return float(error), float(distance)


@torch.no_grad()
def errors_by_timestep(
    unet: UNet2DConditionModel, latents: LatentSet, scheduler: DDIMScheduler, seed: int, *, bands: int = 10,
    samples: int = 1500,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(the middle of each band of timesteps, the mean squared error there), both (bands,); NaN where none was drawn."""
    generator, total = torch.Generator().manual_seed(seed), scheduler.config.num_train_timesteps
    edges = torch.linspace(0, total, bands + 1).long()
    errors, steps = [], []
    for rows in torch.arange(len(latents)).repeat(max(1, samples // len(latents))).split(250):
        data = denoising_batch(latents, rows, scheduler, generator, dropout=0.0).to(unet.device)
        with computing(unet.device):
            made = unet(data.noisy, data.timestep, data.prompt, return_dict=False)[0].float()
        errors.append((made - data.target).square().mean((1, 2, 3)).cpu())
        steps.append(data.timestep.cpu())
    band = torch.bucketize(torch.cat(steps), edges[1:-1], right=True)
    error = torch.cat(errors)
    means = [error[band == k].mean().item() if (band == k).any() else float("nan") for k in range(bands)]
    return ((edges[1:] + edges[:-1]) / 2).numpy(), np.array(means)


def compare(run: Run, candidates: Mapping[str, DistillationLoss], *, seeds: int, steps: int, images: int) -> Ablation:
    """Train the profile's variant once for each candidate and seed, and measure; `images` of each base class are
    judged, and with 0 the accuracy is NaN."""
    check(len(candidates) > 0, "objectives", 0, "must be at least one")
    calls: list[parallel.Call] = [
        ((candidates, run.seed + k), {"steps": steps, "images": images}) for k in range(seeds)
    ]
    parallel.run_stages(one_seed, run, calls, f"{len(candidates)} students for each seed")
    found = [one_seed(run, *args, **named) for args, named in calls]
    together = np.stack([load_file(made / "scores.safetensors")["scores"] for made in found], axis=-1)
    logs = tuple(json.loads((made / "log.json").read_text()) for made in found)
    n = images * len(run.source.base)
    return Ablation(tuple(candidates), dict(zip(MEASURES, together, strict=True)), n, logs)


def compare_objectives(run: Run) -> Ablation:
    """`compare` of all `objectives` at the profile's seeds, steps and pictures: what the chapters on losses share."""
    p = run.profile
    return compare(run, objectives(run), seeds=p.ablation_seeds, steps=p.ablation_steps, images=p.ablation_images)


def one_seed(run: Run, candidates: Mapping[str, DistillationLoss], seed: int, *, steps: int, images: int) -> Artifact:
    """The stage of one seed of `compare`: its ``scores`` (measures, candidates) and ``log.json``."""
    profile = run.profile

    def make(
        folder: Path, *, candidates: Mapping[str, DistillationLoss], variant: str, classes: Sequence[str], seed: int,
        steps: int, batch: int, lr: float, images: int, sampler_steps: int, guidance: float,
    ) -> None:  # fmt: skip
        pipeline, classifier = stages.teacher(run), stages.classifier(run)
        teacher = pipeline.unet
        students = {name: (surgery.shrink(teacher, variant), loss) for name, loss in candidates.items()}
        log = distill_together(
            students, teacher, stages.latents(run).of_classes(classes), pipeline.scheduler, steps=steps, batch=batch,
            lr=lr, warmup=steps // 10, seed=seed, folder=folder / "checkpoint", checkpoint_every=100,
            log_every=max(1, steps // 10), norms_every=max(2, steps // 2),
            describe=f"{len(students)} students, seed {seed}",
        )  # fmt: skip
        test = stages.latents(run, "test").of_classes(classes)
        scores = np.full((len(MEASURES), len(students)), np.nan)
        for k, (unet, _) in enumerate(students.values()):
            scores[1:, k] = heldout_errors(unet, teacher, test, pipeline.scheduler, seed)
            if images:
                pipeline.unet = unet
                drawn = stages.draw(
                    pipeline, classifier.classes, classes, images, seed=seed, steps=sampler_steps, guidance=guidance
                )
                scores[0, k] = class_accuracy(drawn.images, drawn.labels, classifier).value
        save_file({"scores": scores}, folder / "scores.safetensors")
        (folder / "log.json").write_text(json.dumps(log))

    settings = {
        "candidates": dict(candidates),
        "variant": profile.variant,
        "classes": run.source.base,
        "seed": seed,
        "steps": steps,
        "batch": profile.ablation_batch,
        "lr": profile.learning_rate,
        "images": images,
        "sampler_steps": profile.sampler_steps,
        "guidance": profile.guidance,
    }
    inputs = stages.judged_inputs(run)
    return run.store.get("ablation", make, settings=settings, inputs=inputs, external=stages.external_inputs(run))
