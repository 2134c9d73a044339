"""Does a small student behave as its teacher does? BK-SDM's Figures 5 and 7, and its Table 5.

Each of `MODELS` is pretrained at each of the profile's seeds; the teacher takes part beside them. At a seed all of them
draw the same prompts from the same noise, at every scale of guidance, and all of them are taught the same subject.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from kdcdiff.data.drawing import BACKGROUNDS, article
from kdcdiff.data.image_set import ImageSet, captioned
from kdcdiff.data.latents import encode_set
from kdcdiff.experiments import head_to_head, parallel, stages
from kdcdiff.experiments.head_to_head import Cell, seeds
from kdcdiff.experiments.run import Run
from kdcdiff.metrics import extractors, fid_kid, fidelity, similarity
from kdcdiff.metrics.extractors import Extractor
from kdcdiff.metrics.precision_recall import precision_recall
from kdcdiff.sampling import generate as sampling
from kdcdiff.store import Artifact
from kdcdiff.training.losses import DistillationLoss
from kdcdiff.training.personalize import Subject, learn_subject

TEACHER = "teacher"
MODELS = {  # name -> the objective and network of a student; BK-SDM's, and one without distillation
    "base": Cell("bk-sdm", "bk-sdm-base"),
    "small": Cell("bk-sdm", "bk-sdm-small"),
    "base-without-kd": Cell("task", "bk-sdm-base"),
}
EVERYONE = (TEACHER, *MODELS)
TOKEN = "sks"
PICTURES = 5  # of a subject; DreamBooth's data set has four to six
SCENES = ("a photo of {}", *(f"a photo of {{}} on a {ground} background" for ground in BACKGROUNDS))


def _recipe(who: str) -> tuple[str, DistillationLoss]:
    """Return the network and the objective of one of `MODELS`."""
    cell = MODELS[who]
    return cell.network, head_to_head.PRINTED_WEIGHTS[cell.objective]


def model_artifact(run: Run, who: str, seed: int) -> Artifact | None:
    """The stage behind `model`; None: it ships."""
    if who == TEACHER:
        return stages.teacher_artifact(run)
    return stages.student_artifact(run, *_recipe(who), seed)


def model(run: Run, who: str, seed: int) -> StableDiffusionPipeline:
    """Load one of `EVERYONE`: the teacher, or the student of a seed."""
    if who == TEACHER:
        return stages.teacher(run)
    return stages.student(run, *_recipe(who), seed)


def pretrained(run: Run) -> None:
    """Make all students, side by side."""
    calls: list[parallel.Call] = [((who, seed), {}) for seed in seeds(run) for who in MODELS]
    parallel.run_stages(model_artifact, run, calls, f"{len(calls)} students")


# --- guidance ------------------------------------------------------------------------------------------------


def _folder(scale: float) -> str:
    return f"guidance-{scale:g}"


def guided_artifact(run: Run, who: str, seed: int) -> Artifact:
    """The stage behind `guided`: one image set for each scale."""

    def make(
        folder: Path, *, who: str, known: Sequence[str], classes: Sequence[str], count: int, seed: int, steps: int,
        scales: Sequence[float],
    ) -> None:  # fmt: skip
        pipeline = model(run, who, seed)
        for scale in scales:
            (folder / _folder(scale)).mkdir()
            drawn = stages.draw(pipeline, known, classes, count, seed=seed, steps=steps, guidance=scale)
            drawn.save(folder / _folder(scale))

    profile = run.profile
    settings = {
        "who": who,
        "known": run.source.classes,
        "classes": run.source.base,
        "count": profile.guided_images,
        "seed": seed,
        "steps": profile.sampler_steps,
        "scales": profile.guidances,
    }
    inputs, external = stages.made(model=model_artifact(run, who, seed)), stages.external_inputs(run)
    return run.store.get("guided", make, settings=settings, inputs=inputs, external=external)


def guided(run: Run, who: str, seed: int) -> dict[float, ImageSet]:
    """Pictures of the base classes by one of `EVERYONE`, by the scale of guidance; the noise is that of the seed."""
    folder = guided_artifact(run, who, seed).path
    return {scale: ImageSet.load(folder / _folder(scale)) for scale in run.profile.guidances}


MEASURES = ("alignment", "KID", "spread", "precision", "recall")


def trade_off(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Measure what guidance does: model -> measure -> (seeds, scales).

    *alignment*: cosine of picture and prompt; *KID*, *precision* and *recall* against held-out pictures; *spread*: the
    mean perceptual distance of two pictures of one prompt.
    """
    calls: list[parallel.Call] = [((who, seed), {}) for seed in seeds(run) for who in EVERYONE]
    parallel.run_stages(guided_artifact, run, calls, "guided pictures")
    classifier, clip = stages.classifier(run), extractors.Clip(*stages.clip(run))
    features, perceptual = extractors.features(classifier), extractors.perceptual(classifier)
    real = fid_kid.extract(stages.images(run, "test").of_classes(run.source.base), features)

    def measured(images: ImageSet) -> list[float]:
        own = fid_kid.extract(images, features)
        return [
            similarity.clip_score(images.images, images.captions, clip).value,
            fid_kid.kid(own, real).value,
            similarity.lpips_within(images.images, images.captions, perceptual).value,
            *(share.value for share in precision_recall(own, real)),
        ]

    found = {
        who: np.array([[measured(own) for own in guided(run, who, seed).values()] for seed in seeds(run)])
        for who in EVERYONE
    }  # (seeds, scales, measures)
    return {who: dict(zip(MEASURES, own.transpose(2, 0, 1), strict=True)) for who, own in found.items()}


def style_distances(run: Run) -> dict[str, np.ndarray]:
    """Measure how alike one noise makes two models: student -> distance to the teacher's picture of it, (seeds,).

    And of the `TEACHER` itself, the distance of two of its pictures of one prompt, from two noises. All at the scale of
    guidance that is nearest to the profile's.
    """
    perceptual = extractors.perceptual(stages.classifier(run))
    scale = min(run.profile.guidances, key=lambda own: abs(own - run.profile.guidance))
    found: dict[str, list[float]] = {who: [] for who in EVERYONE}
    for seed in seeds(run):
        whole = guided(run, TEACHER, seed)[scale]
        found[TEACHER].append(similarity.lpips_within(whole.images, whole.captions, perceptual).value)
        for who in MODELS:
            own = guided(run, who, seed)[scale].images
            found[who].append(similarity.lpips_paired(own, whole.images, perceptual).value)
    return {who: np.array(own) for who, own in found.items()}


# --- a subject -----------------------------------------------------------------------------------------------


def personalized(run: Run, who: str, seed: int) -> Artifact:
    """The stage of one model that is taught one subject: its ``words.json``, and pictures ``subject`` and ``drawn``.

    The subject is of a class that no model has seen; its noun is the base class that it resembles most.
    """
    subjects = run.source.novel

    def make(
        folder: Path, *, who: str, name: str, classes: Sequence[str], pictures: int, size: int, seed: int, steps: int,
        batch: int, lr: float, prior: int, count: int, sampler: Mapping[str, Any],
    ) -> None:  # fmt: skip
        pipeline, classifier = model(run, who, seed), stages.classifier(run)
        eyes = extractors.features(classifier), extractors.Clip(*stages.clip(run))
        own = run.source.subject(name, pictures, size)
        test = stages.images(run, "test").of_classes(classes)
        subject = Subject(TOKEN, nearest(own, test, eyes[0]))
        shown = captioned(own, subject.caption)
        before = _drawn(pipeline, subject, count, seed=seed, **sampler)
        asked = [subject.prior] * prior
        known = captioned(sampling.generate(pipeline, asked, seed=seed + 1, **sampler), subject.prior)
        latents, prior_latents = (encode_set(pipeline, images) for images in (shown, known))
        began = time.perf_counter()
        learn_subject(
            pipeline.unet, latents, prior_latents, pipeline.scheduler, steps=steps, batch=batch, lr=lr, seed=seed,
            folder=folder / "checkpoint", describe="",
        )  # fmt: skip
        seconds = time.perf_counter() - began
        after = _drawn(pipeline, subject, count, seed=seed, **sampler)
        scores = {when: _scores(drawn, own, *eyes) for when, drawn in (("before", before), ("after", after))}
        words = {"subject": name, "noun": subject.noun, "seconds": seconds, **scores}
        (folder / "words.json").write_text(json.dumps(words))
        for part, images in (("subject", shown), ("drawn", after)):
            (folder / part).mkdir()
            images.save(folder / part)

    profile = run.profile
    settings = {
        "who": who,
        "name": subjects[(seed - run.seed) % len(subjects)],
        "classes": run.source.base,
        "pictures": PICTURES,
        "size": run.resolution,
        "seed": seed,
        "steps": profile.subject_steps,
        "batch": profile.subject_batch,
        "lr": profile.subject_rate,
        "prior": profile.subject_prior,
        "count": profile.subject_images,
        "sampler": {"steps": profile.sampler_steps, "guidance": profile.guidance},
    }
    inputs = stages.made(
        model=model_artifact(run, who, seed), test=stages.images_artifact(run, "test"),
        classifier=stages.classifier_artifact(run), clip=stages.clip_artifact(run),
    )  # fmt: skip
    external = stages.external_inputs(run) | {"source": run.source.checksum()}
    return run.store.get("personalized", make, settings=settings, inputs=inputs, external=external)


def nearest(pictures: Tensor, known: ImageSet, extractor: Extractor) -> str:
    """Name the class of `known` whose mean features are nearest to those of `pictures` (N, 3, H, W) uint8."""
    own, seen = (fid_kid.extract(images, extractor).rows for images in (pictures, known.images))
    labels = known.labels.unique().tolist()
    away = [float((seen[known.labels == label].mean(0) - own.mean(0)).norm()) for label in labels]
    return known.classes[labels[int(np.argmin(away))]]


def _drawn(pipeline: StableDiffusionPipeline, subject: Subject, count: int, **sampler: Any) -> ImageSet:
    """Draw the subject `count` times in each scene; a caption is the prompt without the rare word."""
    scenes = [scene for scene in SCENES for _ in range(count)]
    asked = [scene.format(article(f"{subject.token} {subject.noun}")) for scene in scenes]
    images = sampling.generate(pipeline, asked, **sampler)
    told = tuple(scene.format(article(subject.noun)) for scene in scenes)
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), told, (subject.noun,))


FIDELITIES = ("subject", "subject, second eye", "prompt")


def _scores(drawn: ImageSet, subject: Tensor, features: Extractor, clip: extractors.Clip) -> dict[str, float]:
    """Measure the two fidelities of Ruiz et al. (2023), the subject's through both in-domain eyes."""
    found = (
        fidelity.subject_fidelity(drawn.images, subject, features),
        fidelity.subject_fidelity(drawn.images, subject, extractors.embeddings(clip)),
        fidelity.prompt_fidelity(drawn.images, drawn.captions, clip),
    )
    return {name: own.value for name, own in zip(FIDELITIES, found, strict=True)}


def personalization(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """Teach every model a subject at each seed: model -> measure -> (seeds,).

    ``<fidelity>`` and ``<fidelity> before``, for each of `FIDELITIES`, and ``seconds`` of training.
    """
    calls: list[parallel.Call] = [((who, seed), {}) for seed in seeds(run) for who in EVERYONE]
    parallel.run_stages(personalized, run, calls, "subjects")
    found = {}
    for who in EVERYONE:
        words = [json.loads((personalized(run, who, seed) / "words.json").read_text()) for seed in seeds(run)]
        found[who] = {"seconds": np.array([own["seconds"] for own in words])}
        for name in FIDELITIES:
            found[who] |= {name: np.array([own["after"][name] for own in words])}
            found[who] |= {f"{name} before": np.array([own["before"][name] for own in words])}
    return found


def subject_pictures(run: Run, seed: int) -> tuple[ImageSet, Mapping[str, ImageSet]]:
    """Get the pictures of a seed's subject, and what each model draws of it, (scenes x count)."""
    folders = {who: personalized(run, who, seed) for who in EVERYONE}
    drawn = {who: ImageSet.load(folder / "drawn") for who, folder in folders.items()}
    return ImageSet.load(folders[TEACHER] / "subject"), drawn
