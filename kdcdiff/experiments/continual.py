"""Class-by-class training as a stage: the distilled student learns new classes by each method, measured and timed.

Nothing here trains: that is `kdcdiff.training.continual`. This room feeds it, and looks after every class.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import encode, encode_set
from kdcdiff.data.origin import origin_of
from kdcdiff.errors import check
from kdcdiff.experiments import parallel, stages
from kdcdiff.experiments.run import Run
from kdcdiff.metrics import forgetting
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate, over_seeds
from kdcdiff.metrics.extractors import Extractor
from kdcdiff.metrics.fid_kid import extract, kid
from kdcdiff.models.pipeline import image_size
from kdcdiff.store import Artifact
from kdcdiff.training import continual
from kdcdiff.training.codecs import CODECS


@dataclass(frozen=True)
class ClassByClass:
    """One method's run. `matrix` (stages, classes) of class accuracies, NaN where a class is further away than the
    next; `before` (classes,) the accuracies of the student that has seen none of them; `images` (stages, classes, n, 3,
    H, W) uint8; `retention` the base classes' accuracy at the end; `memory` in bytes.
    """

    order: tuple[str, ...]
    matrix: np.ndarray
    before: np.ndarray
    images: Tensor
    retention: float
    memory: int

    @property
    def pictures(self) -> ImageSet:
        """What the last stage draws of every class learnt."""
        count = self.images.shape[2]
        labels = torch.arange(len(self.order)).repeat_interleave(count)
        return ImageSet(self.images[-1].flatten(0, 1), labels, tuple(stages.prompts(self.order, count)), self.order)


WHOLE = "original"  # the network from which nothing is cut: the teacher


class Arm(NamedTuple):
    """A method of `kdcdiff.training.continual`, and whether its memory has the base classes too, from the beginning."""

    method: str
    base: bool = False


ARMS = {name: Arm(name) for name in continual.METHODS} | {"latent-replay-base": Arm("latent-replay", base=True)}


def class_order(run: Run, repetition: int) -> tuple[str, ...]:
    """The novel classes in the order of a repetition: the source's own for number 0, then seeded shuffles."""
    classes = run.source.novel[: run.profile.continual_classes]
    if repetition == 0:
        return classes
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(run.seed * 1009 + repetition))
    return tuple(classes[k] for k in order.tolist())


def old_count(count: int) -> int:
    """How many pictures are drawn of each base class, where `count` are of each novel one."""
    return max(2, count // 2)


def class_by_class(
    run: Run, method: str, *, repetition: int = 0, capacity: int | None = None, codec: str = "fp16",
    network: str | None = None,
) -> ClassByClass:  # fmt: skip
    """The distilled student learns the novel classes one after another by `method` of `ARMS`; measured after each.

    `repetition` numbers runs, each with a seed and an order of its own; `capacity` replaces the profile's; `network`
    learns in the place of the profile's student, `WHOLE` being the teacher itself. UserError: an unknown method.
    """
    profile = run.profile

    def make(
        folder: Path, *, method: str, order: Sequence[str], base: Sequence[str], variant: str, count: int,
        guidance: float, sampler_steps: int, seed: int, **training: Any,
    ) -> None:  # fmt: skip
        pipeline = stages.teacher(run) if variant == WHOLE else stages.student(run, variant)
        classifier = stages.classifier(run)
        arm, known = ARMS[method], run.source.classes
        joint = continual.METHODS[arm.method].joint
        side = image_size(pipeline)
        matrix = torch.full((1 if joint else len(order), len(order)), float("nan"), dtype=torch.float64)
        seen_images = torch.full((*matrix.shape, count, 3, side, side), 255, dtype=torch.uint8)

        draw = _drawing(pipeline, known, seed=seed, steps=sampler_steps, guidance=guidance)

        def scores(drawn: ImageSet, classes: int) -> list[float]:
            parts = zip(drawn.images.chunk(classes), drawn.labels.chunk(classes), strict=True)
            return [class_accuracy(images, labels, classifier).value for images, labels in parts]

        def measure(stage: int, unet: UNet2DConditionModel) -> None:
            shown = order if joint else order[: stage + 2]  # with the next one, for forward transfer
            drawn = draw(unet, shown, count)
            matrix[stage, : len(shown)] = torch.tensor(scores(drawn, len(shown)), dtype=torch.float64)
            learnt = len(shown) if joint else stage + 1
            seen_images[stage, :learnt] = drawn.images.unflatten(0, (len(shown), count))[:learnt]

        before = scores(draw(pipeline.unet, order, count), len(order))
        memory = continual.learn(
            pipeline.unet, stages.latents(run), order, pipeline.scheduler, arm.method,
            base=base if arm.base else (), seed=seed, folder=folder / "checkpoint", after_stage=measure,
            **_sources(pipeline, stages.images(run, "train"), draw), **training,
        )  # fmt: skip
        old = draw(pipeline.unet, base, old_count(count))
        words = {
            "before": before,
            "retention": class_accuracy(old.images, old.labels, classifier).value,
            "memory": memory,
        }
        save_file({"matrix": matrix, "images": seen_images}, folder / "run.safetensors")
        (folder / "run.json").write_text(json.dumps(words))

    check(method in ARMS, "method", method, f"must be one of {', '.join(ARMS)}")
    order, learner = class_order(run, repetition), network or profile.variant
    settings = {
        "method": method,
        "order": order,
        "base": run.source.base,
        "variant": learner,
        "count": profile.continual_images,
        "guidance": profile.guidance,
        "sampler_steps": profile.continual_sampler_steps,
        "seed": run.seed + repetition,
        "capacity": profile.capacity if capacity is None else capacity,
        "codec": codec,
        **_training(run),
    }
    inputs = _inputs(run, learner) | stages.made(classifier=stages.classifier_artifact(run))
    artifact = run.store.get(
        "class-by-class", make, settings=settings, inputs=inputs, external=stages.external_inputs(run)
    )
    tensors, words = load_file(artifact / "run.safetensors"), json.loads((artifact / "run.json").read_text())
    return ClassByClass(
        order, tensors["matrix"].numpy(), np.array(words["before"]), tensors["images"],
        words["retention"], words["memory"],
    )  # fmt: skip


def seconds(run: Run) -> dict[str, list[float]]:
    """Seconds in which each method learns a second class, (rounds,), one method at a time; nothing else is in it.

    Each round has all methods in turn, so that drift hits all; a class learnt before them warms up. `joint` has no
    second class.
    """
    profile, second = run.profile, [name for name, kind in continual.METHODS.items() if not kind.joint]

    def make(
        folder: Path, *, methods: Sequence[str], order: Sequence[str], variant: str, rounds: int, guidance: float,
        sampler_steps: int, seed: int, **training: Any,
    ) -> None:  # fmt: skip
        pipeline = stages.student(run, variant)
        student, (first, new) = pipeline.unet, order
        draw = _drawing(pipeline, run.source.classes, seed=seed, steps=sampler_steps, guidance=guidance)
        latents, sources = stages.latents(run), _sources(pipeline, stages.images(run, "train"), draw)
        taken: dict[str, list[float]] = {method: [] for method in methods}
        for method in (methods[0], *(method for _ in range(rounds) for method in methods)):
            unet = copy.deepcopy(student)
            with tempfile.TemporaryDirectory() as scratch:
                begun = time.perf_counter()
                continual.learn(
                    unet, latents, [new], pipeline.scheduler, method, base=[first], seed=seed, folder=Path(scratch),
                    **sources, **training,
                )  # fmt: skip
                taken[method].append(time.perf_counter() - begun)
        taken[methods[0]].pop(0)
        (folder / "seconds.json").write_text(json.dumps(taken))

    settings = {
        "methods": second,
        "order": class_order(run, 0)[:2],
        "variant": profile.variant,
        "rounds": profile.latency_rounds,
        "guidance": profile.guidance,
        "sampler_steps": profile.continual_sampler_steps,
        "seed": run.seed,
        "capacity": profile.capacity,
        **_training(run),
    }
    artifact = run.store.get(
        "method-seconds", make, settings=settings, inputs=_inputs(run, profile.variant),
        external=stages.external_inputs(run),
    )  # fmt: skip
    found: dict[str, list[float]] = json.loads((artifact / "seconds.json").read_text())
    return found


# --- what both stages hand to `learn` --------------------------------------------------------------------------

Draw = Callable[[UNet2DConditionModel, Sequence[str], int], ImageSet]  # so many pictures of each class, drawn by it


def _drawing(pipeline: StableDiffusionPipeline, known: Sequence[str], **sampler: Any) -> Draw:
    """Draw with any network in the place of the pipeline's."""

    def draw(unet: UNet2DConditionModel, classes: Sequence[str], count: int) -> ImageSet:
        pipeline.unet = unet
        return stages.draw(pipeline, known, classes, count, **sampler)

    return draw


def _sources(pipeline: StableDiffusionPipeline, pictures: ImageSet, draw: Draw) -> dict[str, Any]:
    """Give what methods replay from beside latents: `pictures`, their encoder, and what a network draws."""
    return {
        "origin": origin_of(pipeline.vae),
        "pixels": pictures.images,
        "encoder": lambda pixels: encode(pipeline.vae, pixels)[0],
        "generate": lambda unet, classes, count: encode_set(pipeline, draw(unet, classes, count)),
    }


def _training(run: Run) -> dict[str, Any]:
    """Give the settings that every method trains with."""
    profile = run.profile
    return {
        "steps": profile.continual_steps,
        "batch": profile.continual_batch,
        "lr": profile.continual_rate,
        "ema": profile.continual_ema,
        "policy": profile.policy,
    }


def _inputs(run: Run, learner: str) -> dict[str, Artifact]:
    """Name what a network learns from, and the network."""
    return stages.made(
        student=None if learner == WHOLE else stages.student_artifact(run, learner),
        latents=stages.latents_artifact(run),
        images=stages.images_artifact(run, "train"),
    )


# --- all methods, and what is read of them ---------------------------------------------------------------------


MEASURES = {  # of the matrix of accuracies; `joint` has one stage, and so no forgetting
    "average_accuracy": forgetting.average_accuracy,
    "forgetting": forgetting.forgetting,
    "backward_transfer": forgetting.backward_transfer,
    "first_class_accuracy": lambda R: float(R[-1, 0]),
}


def as_many_bytes(run: Run, codec: str) -> int:
    """How many pictures in `codec` weigh what the memory's latents do, in half precision."""
    latent = stages.latents(run).mean[0].numel() * 2
    picture = CODECS[codec].size((3, run.resolution, run.resolution))
    return max(1, round(run.profile.capacity * latent / picture))


def compare_methods(run: Run) -> dict[str, list[ClassByClass]]:
    """Each of `ARMS` in every order; a memory of pictures gets as many bytes as that of latents. Made side by side."""
    pictures = {method: kind.codec for method, kind in continual.METHODS.items() if kind.replay == "pixels"}
    weighed = {method: {"capacity": as_many_bytes(run, codec)} for method, codec in pictures.items()}
    return _in_every_order(run, {method: weighed.get(method, {}) for method in ARMS})


PAPERS = ("naive", "latent-replay")  # KDC-Diff-CL, which has no memory, and KDC-Diff


def of_the_teacher(run: Run) -> dict[str, list[ClassByClass]]:
    """The teacher learns as the student does by `PAPERS`, in the same orders: what a network without cuts forgets."""
    return _in_every_order(run, {method: {"network": WHOLE} for method in PAPERS})


def _in_every_order(run: Run, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, list[ClassByClass]]:
    """The repetitions of each of `methods`, whose values are keywords of `class_by_class`; made side by side."""
    calls = {name: [{**own, "repetition": k} for k in range(run.profile.continual_seeds)]
             for name, own in methods.items()}  # fmt: skip
    parallel.run_stages(class_by_class, run, [((name,), own) for name, each in calls.items() for own in each])
    return {name: [class_by_class(run, name, **own) for own in each] for name, each in calls.items()}


def sweep_memory(run: Run) -> dict[str, list[ClassByClass]]:
    """Latent replay in the first order with the profile's capacities, smallest first; and in eight bits."""
    sizes = sorted({*run.profile.capacities, run.profile.capacity})
    calls = [(("latent-replay",), {"capacity": size}) for size in sizes] + [(("latent-replay",), {"codec": "uint8"})]
    parallel.run_stages(class_by_class, run, calls)
    *full, quantised = (class_by_class(run, *method, **own) for method, own in calls)
    return {"latents, fp16": full, "latents, 8 bits": [quantised]}


def measured(repetitions: Sequence[ClassByClass]) -> dict[str, Estimate]:
    """`retention` and each of `MEASURES` that a method has, over its runs."""
    names = [name for name in MEASURES if len(repetitions[0].matrix) > 1 or name.endswith("accuracy")]
    signed = ("forgetting", "backward_transfer")
    return {
        name: over_seeds(_each_of(repetitions, name), within=(-1 if name in signed else 0, 1))
        for name in (*names, "retention")
    }


def _each_of(repetitions: Sequence[ClassByClass], measure: str) -> np.ndarray:
    """``retention`` or one of `MEASURES` of each repetition, (repetitions,)."""
    return np.array([r.retention if measure == "retention" else MEASURES[measure](r.matrix) for r in repetitions])


def kid_matrix(own: ClassByClass, real: ImageSet, extractor: Extractor) -> np.ndarray:
    """KID of each class seen so far (columns) after each stage (rows) against its `real` pictures; NaN for later ones.

    Where all classes are learnt at once the one row has all of them. Of so few pictures each subset holds all: ten of
    them, which differ in the real pictures, stand in the place of a hundred of half the size.
    """
    known = [extract(real.of_classes([name]).images, extractor) for name in own.order]
    rows, columns = own.matrix.shape
    values = np.full((rows, columns), np.nan)
    for i, j in zip(*np.tril_indices(rows, columns - rows, columns), strict=True):
        drawn = extract(own.images[i, j], extractor)
        size = min(len(drawn.rows), len(known[j].rows))
        values[i, j] = kid(drawn, known[j], subsets=10, subset_size=size).value
    return values
