"""Weights of an objective, chosen on pictures that no reported figure uses.

KDC-Diff prints no weights for its equation (6), so whoever compares it must choose; and who chooses for one objective
must give the other the same chance. Each has equally many candidates (`CANDIDATES`), trained beside each other on nine
tenths of the training pictures. What comes closest to the teacher on the last tenth is taken, with one seed: students
of one seed share their batches, so candidates differ in their weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch

from kdcdiff.data.latents import LatentSet
from kdcdiff.experiments import parallel, stages
from kdcdiff.experiments.ablation import heldout_errors
from kdcdiff.experiments.run import Run
from kdcdiff.models import surgery
from kdcdiff.store import Artifact
from kdcdiff.training.distill import distill_together
from kdcdiff.training.losses import BKSDMLoss, DistillationLoss, KDCLoss

TENTH = 10  # every tenth training picture validates
TOGETHER = 6  # candidates in memory at a time; each ends as if it were trained alone


def _over(make: type[DistillationLoss], **values: Sequence[float]) -> dict[str, DistillationLoss]:
    """Make an objective at every combination of weights; names are ``alpha=0.5, beta=1``."""
    cells = [dict(zip(values, cell, strict=True)) for cell in product(*values.values())]
    return {", ".join(f"{name}={value:g}" for name, value in cell.items()): make(**cell) for cell in cells}


CANDIDATES: dict[str, dict[str, DistillationLoss]] = {  # objective -> as many candidates; all keep all of their terms
    "kdc-diff": _over(
        KDCLoss, alpha=(0.5, 0.9), beta=(0.1, 1.0, 10.0), gamma=(0.1, 1.0), temperature=(1.0, 4.0)
    ),
    "bk-sdm": _over(BKSDMLoss, output=(0.3, 1.0, 3.0, 10.0), feature=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
}  # fmt: skip


def parted(latents: LatentSet) -> tuple[LatentSet, LatentSet]:
    """Part the training latents: nine tenths to learn from, and one on which weights are chosen."""
    validates = torch.arange(len(latents)) % TENTH == TENTH - 1
    return latents.subset(~validates), latents.subset(validates)


def search(run: Run, objective: str) -> Artifact:
    """The stage of one objective's search: ``distances.json``, of each candidate to the teacher on the last tenth."""
    profile = run.profile

    def make(
        folder: Path, *, candidates: Mapping[str, DistillationLoss], variant: str, classes: Sequence[str], seed: int,
        steps: int, batch: int, lr: float,
    ) -> None:  # fmt: skip
        pipeline = stages.teacher(run)
        teacher, scheduler = pipeline.unet, pipeline.scheduler
        learnt, validation = parted(stages.latents(run).of_classes(classes))
        distances: dict[str, float] = {}
        waiting = iter(candidates.items())
        while some := dict(islice(waiting, TOGETHER)):
            students = {name: (surgery.shrink(teacher, variant), loss) for name, loss in some.items()}
            distill_together(
                students, teacher, learnt, scheduler, steps=steps, batch=batch, lr=lr, warmup=steps // 10, seed=seed,
                folder=folder / "checkpoint" / f"{len(distances)}", checkpoint_every=20, log_every=steps,
                norms_every=0, describe=f"{len(students)} candidates",
            )  # fmt: skip
            for name, (unet, _) in students.items():
                distances[name] = heldout_errors(unet, teacher, validation, scheduler, seed)[1]
        (folder / "distances.json").write_text(json.dumps(distances, indent=1))

    settings: dict[str, Any] = {
        "candidates": CANDIDATES[objective],
        "variant": profile.variant,
        "classes": run.source.base,
        "seed": run.seed,
        "steps": profile.grid_steps,
        "batch": profile.ablation_batch,
        "lr": profile.learning_rate,
    }
    inputs = stages.made(latents=stages.latents_artifact(run))
    return run.store.get("search", make, settings=settings, inputs=inputs, external=stages.external_inputs(run))


def searched(run: Run, objectives: Sequence[str] = tuple(CANDIDATES)) -> dict[str, dict[str, float]]:
    """Search for the weights of `objectives`, side by side; how far from the teacher each candidate's student ended."""
    parallel.run_stages(search, run, [((objective,), {}) for objective in objectives], "weights")
    return {name: _distances(search(run, name)) for name in objectives}


def chosen(objective: str, found: Artifact) -> DistillationLoss:
    """The objective with the weights that, as its search found, come closest to the teacher."""
    distances = _distances(found)
    return CANDIDATES[objective][min(distances, key=distances.__getitem__)]


def _distances(found: Artifact) -> dict[str, float]:
    read: dict[str, float] = json.loads((found / "distances.json").read_text())
    return read
