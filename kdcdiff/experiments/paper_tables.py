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

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline

from kdcdiff.book.chapter import Chapter
from kdcdiff.claims import tables
from kdcdiff.data import flora
from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import encode_set, origin_of
from kdcdiff.data.styles import STYLES, styled
from kdcdiff.experiments import paper_models, parallel, stages
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate, over_seeds, rank_correlation
from kdcdiff.metrics.extractors import Clip, features, perceptual
from kdcdiff.metrics.fid_kid import extract, frechet, kid
from kdcdiff.metrics.similarity import clip_score, lpips_cross
from kdcdiff.models import surgery
from kdcdiff.models.pipeline import load_pipeline
from kdcdiff.store import Artifact
from kdcdiff.training import continual
from kdcdiff.training.components import train_unet
from kdcdiff.training.distill import distill_together, distillation_loss

TABLE = "kdc-diff-1"
BASE = "sd-1-5"  # whom the others are fine-tunes of
WITHOUT_REPLAY = "kdc-diff-cl"
_SHORT = {"realistic-vision-v51": "realistic", "anything-midjourney": "midjourney"}  # in the paper's names of pairs
METRICS = {"class accuracy": True, "FID": False, "KID": False, "CLIP": True, "perceptual": False}  # is more better?
_COLUMNS = {"FID": "fid", "KID": "kid", "CLIP": "clip", "perceptual": "lpips"}  # the paper's
SUBJECTS = {"flowers": "flower", "butterflies": "butterfly"}  # the paper's data sets, and flora's word for such a class

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


def rows(chapter: Chapter) -> list[Row]:
    """The paper's lines that can be filled here, in its order, with those pairs among the stand-ins that it leaves out
    after its own, and the book's other students at the end."""
    known, found = _roles(chapter), []
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
    students = [Row(name, "student", name, BASE) for name in stages.students(chapter)]
    return found[:last] + added + found[last:] + students


def subjects(chapter: Chapter) -> dict[str, list[str]]:
    """The paper's data set -> the base classes that are measured beside it: flora has flowers and butterflies, Oxford's
    are flowers, and of an image folder the profile's `table_subject` says it."""
    base = list(stages.source(chapter).base)
    if chapter.dataset != "flora":
        return {"flowers" if chapter.dataset == "oxford-102" else chapter.profile.table_subject: base}
    return {subject: [name for name in base if flora.SPECIES[name].kind == kind] for subject, kind in SUBJECTS.items()}


def _printed(subject: str) -> list[dict[str, str]]:
    """The paper's lines; only the flowers' table has pairs and variants."""
    return [line for line in tables.load_tables()[TABLE].rows if line["dataset"] == subject]


def _figures(name: str) -> dict[str, dict[str, float]]:
    """What the paper prints of row `name`: subject -> metric -> figure."""
    lines = {subject: line for subject in SUBJECTS for line in _printed(subject) if line["row"] == name}
    return {subject: {metric: float(line[key]) for metric, key in _COLUMNS.items()} for subject, line in lines.items()}


def _roles(chapter: Chapter) -> dict[str, str]:
    """Name -> the paper's label, of every model that can be had."""
    labels = {r["row"]: r["label"] for r in _printed("flowers") if r["role"] == "baseline"}
    if chapter.profile.style_steps:
        return {name: labels[name] for name in (BASE, *STYLES)}
    return {name: label for name, label in labels.items() if paper_models.named(label).source}


# --- the models --------------------------------------------------------------------------------------------------


def role_stage(chapter: Chapter, name: str) -> Artifact | None:
    """The stage behind `role`; None where there is nothing to train."""
    if name == BASE or not chapter.profile.style_steps:
        return stages.teacher_artifact(chapter)
    profile, pictures, base = (
        chapter.profile,
        stages.images_artifact(chapter, "train"),
        stages.teacher_artifact(chapter),
    )
    params = {"role": name, "steps": profile.style_steps, "batch": profile.distill_batch, "seed": chapter.seed}

    def make(work: Path) -> None:
        pipeline = stages.teacher(chapter)
        images = ImageSet.load(pictures.path).of_classes(stages.source(chapter).base)
        train_unet(
            pipeline, encode_set(pipeline, styled(images, name)), steps=profile.style_steps,
            batch=profile.distill_batch, lr=profile.learning_rate, dropout=0.1, ema=0.95, seed=chapter.seed,
            folder=work / "checkpoint", describe=f"fine-tuning {name}",
        )  # fmt: skip
        pipeline.unet.save_pretrained(work / "unet", safe_serialization=True)

    inputs = {"pictures": pictures} | ({"teacher": base} if base else {})
    return chapter.store.get("stand-in", make, params=params, inputs=inputs, outside=stages.external_inputs(chapter))


def role(chapter: Chapter, name: str) -> StableDiffusionPipeline:
    """The pipeline in the role `name`: the base model, a stand-in, or the hub's own."""
    if not chapter.profile.style_steps:
        return load_pipeline(paper_models.named(_roles(chapter)[name]).source)
    pipeline, made = stages.teacher(chapter), role_stage(chapter, name)
    if name != BASE and made is not None:
        pipeline.unet = type(pipeline.unet).from_pretrained(made / "unet", use_safetensors=True)
    return pipeline


# --- their pictures ----------------------------------------------------------------------------------------------


def make_rows(chapter: Chapter) -> None:
    """Train and draw every row for every seed, side by side; `drawn` finds them."""
    lines, seeds = rows(chapter), [chapter.seed + k for k in range(chapter.profile.table_seeds)]
    stages.latents_artifact(chapter)  # what all need is made here, with every core
    parallel.run_stages(role_stage, chapter, [((name,), {}) for name in _roles(chapter)], "stand-ins")
    parallel.run_stages(stages.student, chapter, [((name,), {}) for name in stages.students(chapter)], "students")
    together = {row.teacher: row for row in lines if row.kind == "pair"}  # the pairs of one teacher are one stage
    rest = [row for row in lines if row.kind != "pair"]
    calls: list[parallel.Call] = [((row, seed), {}) for row in [*reversed(rest), *together.values()] for seed in seeds]
    parallel.run_stages(drawn, chapter, calls, "rows of the table")


def drawn(chapter: Chapter, row: Row, seed: int) -> ImageSet:
    """Pictures of the base classes by the model of `row`, trained and drawn with `seed`; kept in the store."""
    return _MAKERS[row.kind](chapter, row, seed)


def _sampling(chapter: Chapter) -> dict[str, object]:
    """What the pictures of every row depend on."""
    p = chapter.profile
    words = {"images": p.table_images, "sampler": [p.continual_sampler_steps, p.guidance]}
    return words | {"classes": stages.source(chapter).base}


def _draw(chapter: Chapter, pipeline: StableDiffusionPipeline, seed: int) -> ImageSet:
    p, base = chapter.profile, stages.source(chapter).base
    return stages.generate(chapter, pipeline, base, p.table_images, seed=seed, steps=p.continual_sampler_steps)


def _inputs(chapter: Chapter, *names: str) -> dict[str, Artifact]:
    made = {name: role_stage(chapter, name) for name in names}
    return {"latents": stages.latents_artifact(chapter)} | {name: stage for name, stage in made.items() if stage}


def _outside(chapter: Chapter, *names: str) -> dict[str, str]:
    """The hub's models in these roles: nothing else tells their stages from the stand-ins'."""
    roles = _roles(chapter)
    return {} if chapter.profile.style_steps else {name: paper_models.named(roles[name]).source for name in names}


def _baseline(chapter: Chapter, row: Row, seed: int) -> ImageSet:
    def make(work: Path) -> None:
        _draw(chapter, role(chapter, row.name), seed).save(work)

    params = {"role": row.name, "seed": seed, **_sampling(chapter)}
    inputs, outside = _inputs(chapter, row.name), _outside(chapter, row.name)
    return ImageSet.load(chapter.store.get("baseline", make, params=params, inputs=inputs, outside=outside).path)


def _student(chapter: Chapter, row: Row, seed: int) -> ImageSet:
    def make(work: Path) -> None:
        _draw(chapter, stages.student(chapter, row.name), seed).save(work)

    params = {"student": row.name, "seed": seed, **_sampling(chapter)}
    inputs = {"student": stages.student_artifact(chapter, row.name, stages.kdc_loss(chapter))}
    return ImageSet.load(chapter.store.get("student-drawn", make, params=params, inputs=inputs).path)


def _pair(chapter: Chapter, row: Row, seed: int) -> ImageSet:
    """All students of one teacher learn side by side, from one forward of it a step."""
    profile, objective = chapter.profile, stages.kdc_loss(chapter)
    names = [other.student for other in rows(chapter) if other.kind == "pair" and other.teacher == row.teacher]
    params = {
        "teacher": row.teacher, "students": names, "steps": profile.pair_steps, "batch": profile.ablation_batch,
        "lr": profile.learning_rate, "objective": repr(objective), "seed": seed,
        **_sampling(chapter),
    }  # fmt: skip

    def make(work: Path) -> None:
        pipeline = role(chapter, row.teacher)
        students = {name: (role(chapter, name).unet, objective) for name in names}
        distill_together(
            students, pipeline.unet, stages.latents(chapter).of_classes(stages.source(chapter).base),
            pipeline.scheduler, steps=profile.pair_steps, batch=profile.ablation_batch, lr=profile.learning_rate,
            warmup=profile.pair_steps // 10, seed=seed, folder=work / "checkpoint",
            describe=f"students of {row.teacher}, seed {seed}",
        )  # fmt: skip
        for name, (unet, _) in students.items():
            pipeline.unet = unet
            (work / name).mkdir()
            _draw(chapter, pipeline, seed).save(work / name)

    inputs, outside = _inputs(chapter, row.teacher, *names), _outside(chapter, row.teacher, *names)
    made = chapter.store.get("pairs", make, params=params, inputs=inputs, outside=outside)
    return ImageSet.load(made / row.student)


def _class_by_class(chapter: Chapter, row: Row, seed: int) -> ImageSet:
    """The described student learns the base classes one after another from a teacher that knows them all, equation
    (6)."""
    profile, objective, base = chapter.profile, stages.kdc_loss(chapter), stages.source(chapter).base
    method = "naive" if row.name == WITHOUT_REPLAY else "latent-replay"
    params = {
        "teacher": row.teacher, "method": method, "variant": profile.variant, "steps": profile.table_steps,
        "batch": profile.continual_batch, "lr": profile.continual_rate, "ema": profile.continual_ema,
        "capacity": profile.capacity, "policy": profile.policy, "objective": repr(objective), "seed": seed,
        **_sampling(chapter),
    }  # fmt: skip

    def make(work: Path) -> None:
        pipeline = role(chapter, row.teacher)
        student = surgery.shrink(pipeline.unet, profile.variant)
        with distillation_loss({"": (student, objective)}, pipeline.unet, pipeline.scheduler) as price:
            continual.learn(
                student, stages.latents(chapter), base, pipeline.scheduler, method, steps=profile.table_steps,
                batch=profile.continual_batch, lr=profile.continual_rate, ema=profile.continual_ema,
                capacity=profile.capacity, policy=profile.policy, seed=seed, folder=work / "checkpoint",
                origin=origin_of(pipeline.vae), objective=lambda prediction, data: price([prediction], data)[0],
            )  # fmt: skip
        pipeline.unet = student
        _draw(chapter, pipeline, seed).save(work)

    inputs, outside = _inputs(chapter, row.teacher), _outside(chapter, row.teacher)
    made = chapter.store.get("class-by-class-taught", make, params=params, inputs=inputs, outside=outside)
    return ImageSet.load(made.path)


_MAKERS = {
    "baseline": _baseline,
    "pair": _pair,
    "variant": _class_by_class,
    "proposed": _class_by_class,
    "student": _student,
}


# --- their figures -----------------------------------------------------------------------------------------------


def measure(chapter: Chapter, lines: list[Row]) -> dict[str, Table]:
    """Subject -> row -> metric -> its mean over the seeds, with Student's interval. In-domain extractors: `METRICS` are
    the paper's by kind, not by value."""
    judge, seeds = stages.classifier(chapter), [chapter.seed + k for k in range(chapter.profile.table_seeds)]
    eye, clip, distance = features(judge), Clip(*stages.clip(chapter)), perceptual(judge)
    pictures = stages.images(chapter, "test")
    made = {row.name: [drawn(chapter, row, seed) for seed in seeds] for row in lines}
    found: dict[str, Table] = {}
    for subject, names in subjects(chapter).items():
        real = pictures.of_classes(names)
        known, found[subject] = extract(real.images, eye), {}
        for name, sets in made.items():
            values: dict[str, list[float]] = {metric: [] for metric in METRICS}
            for images in (own.of_classes(names) for own in sets):
                seen = extract(images.images, eye)
                values["class accuracy"].append(class_accuracy(images.images, images.labels, judge).value)
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
