"""The paper's Table 1 in small: stand-ins for its models, all pairs of them, and KDC-Diff with each as its teacher.

The hub's models are fine-tunes of one base model; the stand-ins are fine-tunes of the book's small one, each to a look
(`kdcdiff.styles`). With `style_steps` 0 the hub's own models are taken instead. Rows bear the paper's names:

    baseline   a model as it is
    pair       a model distilled from another of the same size: realistic>anything-v5 is taught by realistic-vision
    variant    the described half of a teacher, taught by it class by class; kdc-diff-cl without the replay memory
    proposed   the same with realistic-vision as its teacher and with the memory: KDC-Diff
    student    a student of the book's other chapters: taught by the base model, all classes at once; in no paper

The paper has a table for flowers and one for butterflies: `subjects` are the classes measured beside each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import StableDiffusionPipeline

from kdcdiff.claims import tables
from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import encode_set
from kdcdiff.data.origin import origin_of
from kdcdiff.data.sources import DRAWN
from kdcdiff.data.styles import STYLES, styled
from kdcdiff.experiments import paper_models, parallel, stages
from kdcdiff.experiments.run import Run
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate, over_seeds, rank_correlation
from kdcdiff.metrics.extractors import Clip, features, perceptual
from kdcdiff.metrics.fid_kid import extract, frechet, kid
from kdcdiff.metrics.similarity import clip_score, lpips_cross
from kdcdiff.models import surgery
from kdcdiff.models.export import save_portable
from kdcdiff.models.pipeline import at_resolution, load_pipeline
from kdcdiff.store import Artifact
from kdcdiff.training import continual
from kdcdiff.training.components import train_unet
from kdcdiff.training.distill import distill_together, distillation_loss
from kdcdiff.training.losses import DistillationLoss

TABLE = "kdc-diff-1"
BASE = "sd-1-5"  # whom the others are fine-tunes of
WITHOUT_REPLAY = "kdc-diff-cl"
_SHORT = {"realistic-vision-v51": "realistic", "anything-midjourney": "midjourney"}  # in the paper's names of pairs
METRICS = {"class accuracy": True, "FID": False, "KID": False, "CLIP": True, "perceptual": False}  # is more better?
_COLUMNS = {"FID": "fid", "KID": "kid", "CLIP": "clip", "perceptual": "lpips"}  # the paper's
SUBJECTS = {"flowers": "flower", "butterflies": "butterfly"}  # the paper's data sets, and a drawn set's word for such

Table = dict[str, dict[str, Estimate]]  # row -> metric -> figure


@dataclass(frozen=True)
class Row:
    """A line of the table. `printed` are the paper's figures of it by subject and metric; none where it has no such
    line."""

    name: str
    kind: str
    student: str
    teacher: str
    printed: dict[str, dict[str, float]] = field(default_factory=dict)


def rows(run: Run) -> list[Row]:
    """The paper's lines that can be filled here, in its order, with those pairs among the stand-ins that it leaves out
    after its own, and the book's other students at the end."""
    known, found = _roles(run), []
    for line in _printed("flowers"):
        teacher = line["teacher"] or ("realistic-vision-v51" if line["role"] == "proposed" else "")
        needed = {"baseline": {line["row"]}, "pair": {line["student"], teacher}}.get(line["role"], {teacher})
        if needed <= set(known):
            found.append(Row(line["row"], line["role"], line["student"], teacher, _figures(line["row"])))
    pairs = {(row.teacher, row.student) for row in found if row.kind == "pair"}
    added = [
        Row(f"{_SHORT.get(teacher, teacher)}>{_SHORT.get(student, student)}", "pair", student, teacher)
        for teacher in STYLES
        for student in STYLES
        if (teacher, student) not in pairs and {teacher, student} <= set(known)
    ]
    last = max(place for place, row in enumerate(found) if row.kind == "pair") + 1
    students = [Row(name, "student", name, BASE) for name in stages.students(run)]
    return found[:last] + added + found[last:] + students


def subjects(run: Run) -> dict[str, list[str]]:
    """The paper's data set -> the base classes that are measured beside it: drawn sets have flowers and butterflies,
    Oxford's are flowers, and of an image folder the profile's `table_subject` says it."""
    base = list(run.source.base)
    if run.dataset not in DRAWN:
        return {"flowers" if run.dataset == "oxford-102" else run.profile.table_subject: base}
    return {
        subject: [name for name in base if DRAWN[run.dataset].SPECIES[name].kind == kind]
        for subject, kind in SUBJECTS.items()
    }


def _printed(subject: str) -> list[dict[str, str]]:
    """The paper's lines; only the flowers' table has pairs and variants."""
    return [line for line in tables.load_tables()[TABLE].rows if line["dataset"] == subject]


def _figures(name: str) -> dict[str, dict[str, float]]:
    """What the paper prints of row `name`: subject -> metric -> figure."""
    lines = {subject: line for subject in SUBJECTS for line in _printed(subject) if line["row"] == name}
    return {subject: {metric: float(line[key]) for metric, key in _COLUMNS.items()} for subject, line in lines.items()}


def _roles(run: Run) -> dict[str, str]:
    """Name -> the paper's label, of every model that can be had."""
    labels = {r["row"]: r["label"] for r in _printed("flowers") if r["role"] == "baseline"}
    if run.profile.style_steps:
        return {name: labels[name] for name in (BASE, *STYLES)}
    return {name: label for name, label in labels.items() if paper_models.named(label).source}


# --- the models --------------------------------------------------------------------------------------------------


def role_artifact(run: Run, name: str) -> Artifact | None:
    """The stage behind `role`; None where there is nothing to train."""
    if name == BASE or not run.profile.style_steps:
        return stages.teacher_artifact(run)
    profile, pictures = run.profile, stages.images_artifact(run, "train")

    def make(folder: Path, *, role: str, classes: Sequence[str], dropout: float, **training: Any) -> None:
        pipeline = stages.teacher(run)
        images = ImageSet.load(pictures.path).of_classes(classes)
        train_unet(
            pipeline, encode_set(pipeline, styled(images, role)), dropout=dropout, **training,
            folder=folder / "checkpoint", describe=f"fine-tuning {role}",
        )  # fmt: skip
        save_portable(pipeline.unet, folder / "unet")

    settings = {
        "role": name, "classes": run.source.base, "steps": profile.style_steps, "batch": profile.distill_batch,
        "lr": profile.learning_rate, "dropout": 0.1, "ema": 0.95, "seed": run.seed,
    }  # fmt: skip
    inputs = stages.made(images=pictures, teacher=stages.teacher_artifact(run))
    return run.store.get("stand-in", make, settings=settings, inputs=inputs, external=stages.external_inputs(run))


def role(run: Run, name: str) -> StableDiffusionPipeline:
    """The pipeline in the role `name`: the base model, a stand-in, or the hub's own."""
    if not run.profile.style_steps:
        return run.place(at_resolution(load_pipeline(paper_models.named(_roles(run)[name]).source), run.resolution))
    pipeline, artifact = stages.teacher(run), role_artifact(run, name)
    if name != BASE and artifact is not None:
        folder = artifact / "unet"
        pipeline.unet = run.place(type(pipeline.unet).from_pretrained(folder, use_safetensors=True))
    return pipeline


# --- their pictures ----------------------------------------------------------------------------------------------


def make_rows(run: Run) -> None:
    """Train and draw every row for every seed, side by side; `drawn` finds them."""
    lines, seeds = rows(run), [run.seed + k for k in range(run.profile.table_seeds)]
    stages.latents_artifact(run)  # what all need is made here, with every core
    parallel.run_stages(role_artifact, run, [((name,), {}) for name in _roles(run)], "stand-ins")
    parallel.run_stages(stages.student_artifact, run, [((name,), {}) for name in stages.students(run)], "students")
    together = {row.teacher: row for row in lines if row.kind == "pair"}  # the pairs of one teacher are one stage
    rest = [row for row in lines if row.kind != "pair"]
    calls: list[parallel.Call] = [((row, seed), {}) for row in [*reversed(rest), *together.values()] for seed in seeds]
    parallel.run_stages(drawn, run, calls, "rows of the table")


def drawn(run: Run, row: Row, seed: int) -> ImageSet:
    """Pictures of the base classes by the model of `row`, trained and drawn with `seed`; kept in the store."""
    return _MAKERS[row.kind](run, row, seed)


def _drawing(run: Run) -> dict[str, Any]:
    """What the pictures of every row depend on: the settings of `stages.draw`."""
    p = run.profile
    return {
        "known": run.source.classes, "classes": run.source.base, "count": p.table_images,
        "steps": p.continual_sampler_steps, "guidance": p.guidance,
    }  # fmt: skip


def _inputs(run: Run, *names: str) -> dict[str, Artifact]:
    """The artifacts that a row of these roles reads."""
    return stages.made(latents=stages.latents_artifact(run), **{name: role_artifact(run, name) for name in names})


def _external(run: Run, *names: str) -> dict[str, str]:
    """The hub's models in these roles: nothing else tells their stages from the stand-ins'."""
    roles = _roles(run)
    hub = {} if run.profile.style_steps else {name: paper_models.named(roles[name]).source for name in names}
    return stages.external_inputs(run) | hub


def _baseline(run: Run, row: Row, seed: int) -> ImageSet:
    def make(folder: Path, *, name: str, seed: int, drawing: dict[str, Any]) -> None:
        stages.draw(role(run, name), **drawing, seed=seed).save(folder)

    settings = {"name": row.name, "seed": seed, "drawing": _drawing(run)}
    inputs, external = _inputs(run, row.name), _external(run, row.name)
    return ImageSet.load(run.store.get("baseline", make, settings=settings, inputs=inputs, external=external).path)


def _student(run: Run, row: Row, seed: int) -> ImageSet:
    def make(folder: Path, *, student: str, seed: int, drawing: dict[str, Any]) -> None:
        stages.draw(stages.student(run, student), **drawing, seed=seed).save(folder)

    settings = {"student": row.name, "seed": seed, "drawing": _drawing(run)}
    inputs = stages.made(student=stages.student_artifact(run, row.name))
    external = stages.external_inputs(run)
    return ImageSet.load(run.store.get("student-drawn", make, settings=settings, inputs=inputs, external=external).path)


def _pair(run: Run, row: Row, seed: int) -> ImageSet:
    """All students of one teacher learn side by side, from one forward of it a step."""
    profile = run.profile

    def make(
        folder: Path, *, teacher: str, students: Sequence[str], objective: DistillationLoss, seed: int, steps: int,
        batch: int, lr: float, drawing: dict[str, Any],
    ) -> None:  # fmt: skip
        pipeline = role(run, teacher)
        learners = {name: (role(run, name).unet, objective) for name in students}
        distill_together(
            learners, pipeline.unet, stages.latents(run).of_classes(drawing["classes"]), pipeline.scheduler,
            steps=steps, batch=batch, lr=lr, warmup=steps // 10, seed=seed, folder=folder / "checkpoint",
            describe=f"students of {teacher}, seed {seed}",
        )  # fmt: skip
        for name, (unet, _) in learners.items():
            pipeline.unet = unet
            (folder / name).mkdir()
            stages.draw(pipeline, **drawing, seed=seed).save(folder / name)

    names = tuple(other.student for other in rows(run) if other.kind == "pair" and other.teacher == row.teacher)
    settings = {
        "teacher": row.teacher, "students": names, "objective": stages.kdc_loss(run), "seed": seed,
        "steps": profile.pair_steps, "batch": profile.ablation_batch, "lr": profile.learning_rate,
        "drawing": _drawing(run),
    }  # fmt: skip
    inputs, external = _inputs(run, row.teacher, *names), _external(run, row.teacher, *names)
    artifact = run.store.get("pairs", make, settings=settings, inputs=inputs, external=external)
    return ImageSet.load(artifact / row.student)


def _class_by_class(run: Run, row: Row, seed: int) -> ImageSet:
    """The described student learns the base classes one after another from a teacher that knows them all, equation
    (6)."""
    profile = run.profile

    def make(
        folder: Path, *, teacher: str, variant: str, method: str, objective: DistillationLoss, seed: int,
        drawing: dict[str, Any], **training: Any,
    ) -> None:  # fmt: skip
        pipeline = role(run, teacher)
        student = surgery.shrink(pipeline.unet, variant)
        with distillation_loss({"": (student, objective)}, pipeline.unet, pipeline.scheduler) as loss_fn:
            continual.learn(
                student, stages.latents(run), drawing["classes"], pipeline.scheduler, method, **training, seed=seed,
                folder=folder / "checkpoint", origin=origin_of(pipeline.vae),
                objective=lambda prediction, data: loss_fn([prediction], data)[0],
            )  # fmt: skip
        pipeline.unet = student
        stages.draw(pipeline, **drawing, seed=seed).save(folder)

    settings = {
        "teacher": row.teacher, "variant": profile.variant,
        "method": "naive" if row.name == WITHOUT_REPLAY else "latent-replay",
        "objective": stages.kdc_loss(run), "seed": seed, "drawing": _drawing(run),
        "steps": profile.table_steps, "batch": profile.continual_batch, "lr": profile.continual_rate,
        "ema": profile.continual_ema, "capacity": profile.capacity, "policy": profile.policy,
    }  # fmt: skip
    inputs, external = _inputs(run, row.teacher), _external(run, row.teacher)
    artifact = run.store.get("class-by-class-taught", make, settings=settings, inputs=inputs, external=external)
    return ImageSet.load(artifact.path)


_MAKERS = {
    "baseline": _baseline,
    "pair": _pair,
    "variant": _class_by_class,
    "proposed": _class_by_class,
    "student": _student,
}


# --- their figures -----------------------------------------------------------------------------------------------


def measure(run: Run, lines: list[Row]) -> dict[str, Table]:
    """Subject -> row -> metric -> its mean over the seeds, with Student's interval. In-domain extractors: `METRICS` are
    the paper's by kind, not by value."""
    classifier, seeds = stages.classifier(run), [run.seed + k for k in range(run.profile.table_seeds)]
    extractor, clip, distance = features(classifier), Clip(*stages.clip(run)), perceptual(classifier)
    pictures = stages.images(run, "test")
    made = {row.name: [drawn(run, row, seed) for seed in seeds] for row in lines}
    found: dict[str, Table] = {}
    for subject, names in subjects(run).items():
        real = pictures.of_classes(names)
        known, found[subject] = extract(real, extractor), {}
        for name, sets in made.items():
            values: dict[str, list[float]] = {metric: [] for metric in METRICS}
            for images in (own.of_classes(names) for own in sets):
                seen = extract(images, extractor)
                values["class accuracy"].append(class_accuracy(images.images, images.labels, classifier).value)
                values["FID"].append(frechet(seen, known))
                values["KID"].append(kid(seen, known).value)
                values["CLIP"].append(clip_score(images.images, images.captions, clip).value)
                pairs = 8 * len(images)
                values["perceptual"].append(lpips_cross(images.images, real.images, distance, pairs=pairs).value)
            found[subject][name] = {
                metric: over_seeds(np.array(own), metric, (0, 1) if metric == "class accuracy" else (-np.inf, np.inf))
                for metric, own in values.items()
            }
    return found


def agreement(lines: list[Row], figures: dict[str, Table], subject: str, metric: str) -> Estimate:
    """Spearman's rank correlation of a column with the paper's, over the rows that the paper prints for `subject`; the
    interval is Fisher's, with the standard error of Bonett & Wright (2000)."""
    own = figures[subject]
    pairs = [(row.printed[subject][metric], own[row.name][metric].value) for row in lines if subject in row.printed]
    return rank_correlation(*zip(*pairs, strict=True))
