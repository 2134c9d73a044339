"""KDC-Diff's loss or BK-SDM's? At equal networks, equal steps and equal batches, seed by seed.

A cell is an objective on a network. Within a network all students have the same parameters and multiply-accumulates,
start from the same weights and see the same batches; each is trained and measured as a stage of its own, so that
questions share the cells that they have in common: BK-SDM's Table 4 (N1 to N7) is seven of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.numpy import load_file, save_file

from kdcdiff.data.latents import LatentSet, denoising_batch
from kdcdiff.experiments import parallel, stages, tuning
from kdcdiff.experiments.ablation import MEASURES, Ablation, heldout_errors
from kdcdiff.experiments.run import Run
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate, over_seeds
from kdcdiff.process import computing
from kdcdiff.store import Artifact, write_atomically
from kdcdiff.training.distill import distill
from kdcdiff.training.losses import BKSDMLoss, DistillationLoss

NETWORKS = ("kdc-described", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny")
PRINTED = {"kdc-printed": "bk-sdm-small"}  # one network: the one whose parameters KDC-Diff's Table 2 prints
MAIN = ("kdc-diff", "bk-sdm", "bk-sdm-tuned", "task")
WITHOUT: dict[str, dict[str, float]] = {  # equation (6) without one of its terms, by the weight that ends it
    "kdc-diff-without-soft": {"alpha": 0.0},  # the hard term has its share then, and
    "kdc-diff-without-hard": {"alpha": 1.0},  # the soft one here: the equation couples them
    "kdc-diff-without-feature": {"beta": 0.0},
    "kdc-diff-without-mse": {"gamma": 0.0},
}
REMOVED = {  # objective -> what it is without each of its terms
    "kdc-diff": tuple(WITHOUT),
    "bk-sdm": ("task-feature", "task-output"),  # its task term has no weight that could be 0
}
PRINTED_WEIGHTS: dict[str, DistillationLoss] = {  # BK-SDM's objective with its weights of one, and its parts
    "bk-sdm": BKSDMLoss(),
    "task": BKSDMLoss(output=0, feature=0),
    "task-output": BKSDMLoss(feature=0),
    "task-feature": BKSDMLoss(output=0),
}
SEARCHED = dict.fromkeys(("kdc-diff", *REMOVED["kdc-diff"]), "kdc-diff") | {"bk-sdm-tuned": "bk-sdm"}
"""The other objectives, by the search (`tuning`) that their weights come from."""
BETTER = {"distance": -1, "accuracy": 1}  # the primary endpoints: a smaller distance is better, a larger accuracy
POINTS = (
    6  # of a training at which the distance to the teacher is measured; a longer one has more, a usual length apart
)
ROWS = 2  # held-out latents that it is measured on, for each of the profile's `influence_images`; the end has all


def tuned(name: str, loss: DistillationLoss) -> DistillationLoss:
    """Take one of `SEARCHED`, or the part of it that `name` is, at the chosen weights of `loss`."""
    return replace(loss, **WITHOUT.get(name, {}))


@dataclass(frozen=True)
class Cell:
    """An objective on a network, at so many times the batch, and so many times the samples.

    A `larger` batch alone has as many times fewer steps; with as many times the `samples` it has equal steps, and where
    there are more of them than that, more steps. Without samples it is the network as it was cut.
    """

    objective: str
    network: str
    larger: int = 1
    samples: int = 1

    @property
    def name(self) -> str:
        """Name it as its results are recorded: ``recipe.<name>.<endpoint>``."""
        if not self.samples:
            return f"untrained.{self.network}"
        sizes = {"batch": self.larger, "samples": self.samples}
        told = "".join(f"-{size}-{n}" for size, n in sizes.items() if n > 1)
        return f"{self.objective}{'-longer' if self.samples > self.larger else told}.{self.network}"


def networks(run: Run) -> tuple[str, ...]:
    """Name the networks that the objectives meet on at the run's profile."""
    return NETWORKS[: run.profile.contest_networks]


def grid(networks: Sequence[str] = NETWORKS) -> list[Cell]:
    """List the `MAIN` objectives on every one of `networks`, and those of `REMOVED` without each of their terms."""
    objectives = (*MAIN, *(name for parts in REMOVED.values() for name in parts))
    return [Cell(objective, network) for network in networks for objective in objectives]


FRESH = "bk-sdm-base" + stages.RANDOM
TABLE_4 = {  # of BK-SDM: initial weights, output KD, feature KD, batch, mid stage
    "N1": Cell("task", FRESH),
    "N2": Cell("task", "bk-sdm-base"),
    "N3": Cell("task-output", "bk-sdm-base"),
    "N4": Cell("bk-sdm", "bk-sdm-base"),
    "N5": Cell("bk-sdm", "bk-sdm-base", larger=4),  # its 256 for 64
    "N6": Cell("bk-sdm", "bk-sdm-small"),
    "N7": Cell("bk-sdm", "bk-sdm-small", larger=4),
}
WEIGHTS = Cell("bk-sdm", FRESH)  # what carried-over weights are worth under its own objective
LARGER = Cell("bk-sdm", "bk-sdm-base", larger=4, samples=4)  # N5 as it was trained: as many steps as N4
EFFECTS = {  # what BK-SDM reads in its Table 4 -> the row with it, and the row without
    "carried-over weights": ("N2", "N1"),
    "output KD": ("N3", "N2"),
    "feature KD": ("N4", "N3"),
    "a larger batch": ("N5", "N4"),
    "a mid stage": ("N4", "N6"),
}


def cells(networks: Sequence[str] = NETWORKS) -> list[Cell]:
    """List what the contest and Table 4 ask for, each once."""
    return list(dict.fromkeys((*grid(networks), *TABLE_4.values(), WEIGHTS, LARGER)))


def longer(times: int) -> list[Cell]:
    """List the `MAIN` objectives on the first network, each trained for as many times more steps."""
    return [Cell(objective, NETWORKS[0], samples=times) for objective in MAIN]


WHOLE = Cell("task", "original", samples=0)  # the teacher itself


def before_and_after(networks: Sequence[str], times: int) -> dict[str, tuple[Cell, Cell]]:
    """Map each network to its cells as it was cut, and after KDC-Diff's objective for as many steps as `longer`."""
    return {name: (Cell("task", name, samples=0), Cell("kdc-diff", name, samples=times)) for name in networks}


def seeds(run: Run) -> list[int]:
    """List the seeds of the students that the run's profile asks for."""
    return [run.seed + k for k in range(run.profile.contest_seeds)]


# --- one student ---------------------------------------------------------------------------------------------


def student(run: Run, cell: Cell, seed: int, found: Artifact | None = None) -> Artifact:
    """The stage of one cell and seed: ``scores`` (measures,), the ``curve`` (points,) over ``steps``, and the log.

    `found` is the search that its weights come from, where they were searched for; None: the run's own.
    """
    profile, searched = run.profile, SEARCHED.get(cell.objective)
    weights = {"weights": found or tuning.search(run, searched)} if searched else {}

    def make(
        folder: Path, *, objective: str, printed: DistillationLoss | None, network: str, classes: Sequence[str],
        seed: int, steps: int, batch: int, lr: float, points: int, rows: int, images: int, sampler_steps: int,
        guidance: float,
    ) -> None:  # fmt: skip
        loss = printed or tuned(objective, tuning.chosen(SEARCHED[objective], weights["weights"]))
        pipeline, classifier = stages.teacher(run), stages.classifier(run)
        teacher, scheduler = pipeline.unet, pipeline.scheduler
        unet = stages.init_student(teacher, network, seed)
        test = stages.latents(run, "test").of_classes(classes)
        curve = _Curve(unet, _Distance(teacher, test, scheduler, rows), folder / "checkpoint" / "curve.json")
        log = distill(
            unet, teacher, stages.latents(run).of_classes(classes), scheduler, loss, steps=steps, batch=batch,
            lr=lr, warmup=steps // 10, seed=seed, folder=folder / "checkpoint", checkpoint_every=100,
            log_every=max(1, steps // 10), norms_every=0, describe="", watch=curve.note,
            watch_every=max(1, steps // points),
        )  # fmt: skip
        curve.note(steps)
        scores = np.array([np.nan, *heldout_errors(unet, teacher, test, scheduler, seed)])
        pipeline.unet = unet
        sampler = {"seed": seed, "steps": sampler_steps, "guidance": guidance}
        drawn = stages.draw(pipeline, classifier.classes, classes, images, **sampler)
        scores[0] = class_accuracy(drawn.images, drawn.labels, classifier).value
        save_file({"scores": scores} | curve.arrays(), folder / "scores.safetensors")
        (folder / "log.json").write_text(json.dumps(log))

    settings = {
        "objective": cell.objective,
        "printed": PRINTED_WEIGHTS.get(cell.objective),
        "network": cell.network,
        "classes": run.source.base,
        "seed": seed,
        "steps": math.ceil(profile.ablation_steps * cell.samples / cell.larger),
        "batch": profile.ablation_batch * cell.larger,
        "lr": profile.learning_rate,
        "points": max(POINTS, cell.samples // cell.larger),
        "rows": ROWS * profile.influence_images,
        "images": profile.ablation_images,
        "sampler_steps": profile.sampler_steps,
        "guidance": profile.guidance,
    }
    inputs = stages.judged_inputs(run) | weights
    return run.store.get("recipe", make, settings=settings, inputs=inputs, external=stages.external_inputs(run))


class _Distance:
    """The squared distance to the teacher's output on held-out latents, evenly taken, at noise that stays the same."""

    @torch.no_grad()
    def __init__(self, teacher: UNet2DConditionModel, latents: LatentSet, scheduler: DDIMScheduler, rows: int) -> None:
        taken = torch.arange(0, len(latents), max(1, len(latents) // rows))[:rows]
        generator = torch.Generator().manual_seed(0)
        self.data = denoising_batch(latents, taken, scheduler, generator, dropout=0.0).to(teacher.device)
        self.wanted = self._of(teacher)

    @torch.no_grad()
    def _of(self, unet: UNet2DConditionModel) -> torch.Tensor:
        data = self.data
        with computing(unet.device):
            return unet(data.noisy, data.timestep, data.prompt, return_dict=False)[0].float()

    def __call__(self, unet: UNet2DConditionModel) -> float:
        return (self._of(unet) - self.wanted).square().mean().item()


class _Curve:
    """What `distance` is of a network in training, by step, in a file: a killed training knows its own past."""

    def __init__(self, unet: UNet2DConditionModel, distance: _Distance, path: Path) -> None:
        self.unet, self.distance, self.path = unet, distance, path
        self.known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
        self.note(0)

    def note(self, step: int) -> None:
        """Measure the network after `step`, unless that is known, and write down all points so far."""
        if str(step) in self.known:
            return
        self.known[str(step)] = self.distance(self.unet)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.known))

    def arrays(self) -> dict[str, np.ndarray]:
        """Give the steps and the distances, each (points,)."""
        steps = sorted(map(int, self.known))
        return {"steps": np.array(steps), "curve": np.array([self.known[str(step)] for step in steps])}


# --- all of them ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadToHead(Ablation):
    """Students by cell and seed. `curves` are the distances (seeds, points) at `steps` (points,), by cell."""

    steps: dict[str, np.ndarray]
    curves: dict[str, np.ndarray]

    def pooled(self, measure: str, one: str, other: str, networks: Sequence[str]) -> Estimate:
        """How much more of `measure` one objective's students have than another's, a mean over `networks` each seed."""
        scores = dict(zip(self.names, self.scores[measure], strict=True))
        return over_seeds(np.mean([scores[f"{one}.{n}"] - scores[f"{other}.{n}"] for n in networks], 0))

    def lead(self, one: str, other: str) -> dict[str, Estimate]:
        """How much better `one` is than `other` by each primary endpoint, seed by seed; below zero it is worse."""
        return {measure: sign * self.gain(measure, one, other) for measure, sign in BETTER.items()}

    def steps_to(self, name: str, reference: str) -> np.ndarray:
        """How many steps, seed by seed, until `name` is as close to the teacher as `reference` ends, (seeds,)."""
        pairs = zip(self.curves[name], self.curves[reference][:, -1], strict=True)
        return np.array([first_below(self.steps[name], curve, end) for curve, end in pairs])

    def reached(self, name: str, reference: str) -> dict[str, str | int]:
        """A table's cells: how many seeds of `name` get as close as `reference` ends, and after how many steps."""
        steps = self.steps_to(name, reference)
        there = np.isfinite(steps)
        return {
            "seeds that get there": f"{there.sum()} of {len(steps)}",
            "median steps": f"{np.median(steps[there]):.0f}" if there.any() else "never",
            "of": int(self.steps[reference][-1]),
        }


def first_below(steps: np.ndarray, curve: np.ndarray, threshold: float) -> float:
    """Return where `curve` (points,) over `steps` first comes down to `threshold`, between points by a straight line.

    Infinite where it never does.
    """
    below = np.flatnonzero(curve <= threshold)
    if len(below) == 0:
        return float("inf")
    k = int(below[0])
    if k == 0:
        return float(steps[0])
    part = (curve[k - 1] - threshold) / (curve[k - 1] - curve[k])
    return float(steps[k - 1] + part * (steps[k] - steps[k - 1]))


def compare(run: Run, cells: Iterable[Cell], searched: Run | None = None) -> HeadToHead:
    """Train and measure every cell at the profile's seeds, side by side.

    `searched` is the run whose searches the weights come from, where they were searched for; None: this one.
    """
    own, searched = {cell.name: cell for cell in cells}, searched or run
    wanted = {name: SEARCHED[cell.objective] for name, cell in own.items() if cell.objective in SEARCHED}
    tuning.searched(searched, sorted(set(wanted.values())))
    weights = {name: tuning.search(searched, objective) for name, objective in wanted.items()}
    calls: dict[str, list[parallel.Call]] = {
        name: [((cell, seed, weights.get(name)), {}) for seed in seeds(run)] for name, cell in own.items()
    }
    turns = [call for by_seed in zip(*calls.values(), strict=True) for call in by_seed]  # a whole seed after the other
    parallel.run_stages(student, run, turns, f"{len(turns)} students")
    found = {
        name: [load_file(student(run, *given) / "scores.safetensors") for given, _ in each]
        for name, each in calls.items()
    }
    scores = np.array([[one["scores"] for one in by_seed] for by_seed in found.values()])  # (cells, seeds, measures)
    return HeadToHead(
        tuple(found), dict(zip(MEASURES, scores.transpose(2, 0, 1), strict=True)),
        run.profile.ablation_images * len(run.source.base), (),
        {name: by_seed[0]["steps"] for name, by_seed in found.items()},
        {name: np.array([one["curve"] for one in by_seed]) for name, by_seed in found.items()},
    )  # fmt: skip


ENDPOINTS = {"class_accuracy": "accuracy", "distance": "distance", "error": "error"}  # as recorded -> a measure


def recorded(cells: Iterable[Cell]) -> dict[str, str]:
    """Map each name that a claim may ask for, ``recipe.<objective>.<variant>``, to the cell that it is read from."""
    found: dict[str, str] = {}
    for name in (cell.name for cell in cells):
        objective, _, network = name.partition(".")
        same = (network, *(other for other, own in PRINTED.items() if own == network))
        found |= {f"recipe.{objective}.{variant}": name for variant in same}
    return found
