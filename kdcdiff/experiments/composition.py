"""Prompts that state several things at once, and what a teacher draws of them: the pictures of attribute compliance.

For example:

    asked, drawn = composition.requested(run.shipped("garden"), 4, plan="left of")
    asked, drawn = composition.requested(run.shipped("garden"), 4, network="mid-removed")
    compliance(drawn.images, asked, load_reader())                      # kdcdiff.metrics.attributes
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from kdcdiff.data.attributes import NONE, Request, requests, shown
from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.sources import DRAW, DRAWN, FIRST, image_set
from kdcdiff.experiments import stages
from kdcdiff.experiments.run import Run
from kdcdiff.models import surgery
from kdcdiff.sampling import generate as sampling


def requested(
    run: Run, per_class: int, plan: str = "alone", network: str = "original"
) -> tuple[list[Request], ImageSet]:
    """Prompts that state what a drawn data set's captions state, half of them new to the teacher; its pictures of them.

    `per_class` of each base class, alone or beside another where `plan` says. Of the teacher as it is, or as the
    variant `network`, untrained.
    """

    def make(
        folder: Path, *, prompts: Sequence[str], network: str, known: Sequence[str], labels: Sequence[int],
        **sampler: Any,
    ) -> None:  # fmt: skip
        pipeline = stages.teacher(run)
        pipeline.unet = surgery.shrink(pipeline.unet, network)
        images = sampling.generate(pipeline, prompts, **sampler)
        ImageSet(images, torch.tensor(labels), tuple(prompts), tuple(known)).save(folder)

    source, profile = run.source, run.profile
    asked = requests(source.name, source.base, per_class, plan=plan, seed=run.seed)
    settings = {
        "prompts": [request.prompt for request in asked],
        "network": network,
        "known": source.classes,
        "labels": [source.classes.index(name) for name in source.base for _ in range(per_class)],
        "seed": run.seed,
        "steps": profile.sampler_steps,
        "guidance": profile.guidance,
    }
    inputs, external = stages.made(teacher=stages.teacher_artifact(run)), stages.external_inputs(run)
    return asked, ImageSet.load(
        run.store.get("requested", make, settings=settings, inputs=inputs, external=external).path
    )


def real_requests(run: Run, per_class: int) -> tuple[torch.Tensor, list[Request]]:
    """Held-out real pictures of a drawn data set, alone and beside others, as if asked for by what they show.

    What `requested` does not ask for (petals, wing patterns, that there be no second subject) is left out.
    """
    source = run.source
    beside = {"pairs": per_class} if source.name == "garden" else {}
    pictures = DRAW[source.name]("test", source.base, per_class, source.seed, unseen=True, **beside)
    images = image_set(pictures, source.base)
    told = [{k: v for k, v in shown(p).items() if k not in ("parts", "pattern") and v != NONE} for p in pictures]
    return images.images, [Request(words, own, seen=False) for words, own in zip(images.captions, told, strict=True)]


def real_alone(run: Run, per_class: int) -> ImageSet:
    """Held-out real pictures of one subject each, `per_class` of each base class in any of its combinations.

    What distances hold `requested` pictures of plan ``alone`` against.
    """
    source = run.source
    taken: list[Any] = []
    for name in source.base:
        pictures = (DRAWN[source.name].draw(name, FIRST["test"] + i, source.seed, unseen=True) for i in count())
        alone = (picture for picture in pictures if shown(picture).get("arrangement", "alone") == "alone")
        taken += islice(alone, per_class)
    return image_set(taken, source.base)
