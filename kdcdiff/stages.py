"""The road's stages: each turns artifacts into the next artifact, and a notebook tells its story over them.

    pictures -> latents -> teacher -> student -> class-by-class -> images -> metrics

Every function takes the open `Chapter`, whose profile gives the sizes and whose store keeps the results. Whatever a
stage depends on is in its key, so chapters can ask for the same stage and it is made once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from kdcdiff import continual, data, pretrain, sampling, stack, surgery
from kdcdiff.chapter import Chapter
from kdcdiff.data import ImageSet, Source
from kdcdiff.distill import distill
from kdcdiff.latents import LatentSet, decode, encode, encode_set, origin_of
from kdcdiff.losses import KDCLoss
from kdcdiff.metrics import Estimate, class_accuracy
from kdcdiff.store import Artifact


def source(chapter: Chapter) -> Source:
    """The chapter's data set and its classes, base and novel."""
    return data.open_source(chapter.dataset, chapter.profile.classes)


# --- pictures and latents ------------------------------------------------------------------------------------


def pictures_stage(chapter: Chapter, split: str) -> Artifact:
    """The stage behind `pictures`."""
    where = source(chapter)
    count = chapter.profile.train_images if split == "train" else chapter.profile.test_images

    def make(work: Path) -> None:
        where.load(split, where.classes, count).save(work)

    return chapter.store.get(
        "pictures",
        make,
        params={"split": split, "count": count, "classes": where.classes},
        outside={"source": where.checksum()},
    )


def pictures(chapter: Chapter, split: str) -> ImageSet:
    """All classes' pictures of a split, ``train`` or ``test``."""
    return ImageSet.load(pictures_stage(chapter, split).path)


def latents_stage(chapter: Chapter, split: str = "train") -> Artifact:
    """The stage behind `latents`; this and its like are for stages that read it."""
    pictures_, teacher_ = pictures_stage(chapter, split), teacher_stage(chapter)

    def make(work: Path) -> None:
        encode_set(teacher(chapter), ImageSet.load(pictures_.path)).save(work)

    inputs = {"pictures": pictures_} | ({"teacher": teacher_} if teacher_ else {})
    return chapter.store.get("latents", make, inputs=inputs, outside=outside(chapter))


def latents(chapter: Chapter, split: str = "train") -> LatentSet:
    """A split's pictures of all classes as the teacher's autoencoder and text encoder see them."""
    return LatentSet.load(latents_stage(chapter, split).path)


# --- the judge and the teacher -------------------------------------------------------------------------------


def judge(chapter: Chapter) -> stack.Classifier:
    """The independent classifier: the shipped one for flora; a folder's own, trained on its real images only."""
    if source(chapter).root is None:
        return stack.classifier()
    pictures_, steps = pictures_stage(chapter, "train"), chapter.profile.classifier_steps

    def make(work: Path) -> None:
        stack.save_classifier(
            pretrain.train_classifier(ImageSet.load(pictures_.path), steps, 64, chapter.seed, work), work
        )

    return stack.classifier(
        chapter.store.get(
            "judge", make, params={"steps": steps, "seed": chapter.seed}, inputs={"pictures": pictures_}
        ).path
    )


def scorer(chapter: Chapter) -> tuple[CLIPModel, CLIPTokenizer]:
    """The small CLIP of prompt alignment: the shipped one for flora; a folder's own, trained on all its classes."""
    if source(chapter).root is None:
        return stack.clip()
    pictures_, steps = pictures_stage(chapter, "train"), chapter.profile.classifier_steps

    def make(work: Path) -> None:
        images = ImageSet.load(pictures_.path)
        tokenizer = stack.train_tokenizer(images.captions)
        batch = min(128, len(images))
        model = pretrain.train_clip(images, tokenizer, steps, batch, chapter.seed, work, "scorer")
        model.save_pretrained(work, safe_serialization=True)
        tokenizer.save_pretrained(work)

    params = {"steps": steps, "seed": chapter.seed}
    return stack.clip(chapter.store.get("scorer", make, params=params, inputs={"pictures": pictures_}).path)


def teacher_stage(chapter: Chapter) -> Artifact | None:
    """None: the teacher ships. Otherwise the shipped one, fine-tuned on the folder's base classes."""
    where, profile = source(chapter), chapter.profile
    if where.root is None:
        return None
    pictures_ = pictures_stage(chapter, "train")
    params = {
        "eye_steps": profile.classifier_steps // 2,
        "autoencoder_steps": profile.autoencoder_steps,
        "steps": profile.teacher_steps,
        "batch": profile.distill_batch,
        "seed": chapter.seed,
        "teacher": profile.teacher,
    }

    def make(work: Path) -> None:
        pipeline, images = stack.load(profile.teacher), ImageSet.load(pictures_.path)
        pretrain.fine_tune(
            pipeline,
            images.of_classes(where.base),
            eye_steps=profile.classifier_steps // 2,
            autoencoder_steps=profile.autoencoder_steps,
            unet_steps=profile.teacher_steps,
            batch=profile.distill_batch,
            seed=chapter.seed,
            folder=work / "checkpoint",
        )
        pipeline.save_pretrained(work / "pipeline", safe_serialization=True)

    return chapter.store.get(
        "teacher", make, params=params, inputs={"pictures": pictures_}, outside={"assets": stack.assets_key()}
    )


def outside(chapter: Chapter) -> dict[str, str]:
    """What a stage that reads the teacher names as its outside input: the shipped files, and any other teacher."""
    name = chapter.profile.teacher
    return {"assets": stack.assets_key()} | ({} if name == "flora" else {"teacher": name})


def teacher(chapter: Chapter) -> StableDiffusionPipeline:
    """The teacher's pipeline."""
    made = teacher_stage(chapter)
    return stack.load(chapter.profile.teacher if made is None else made / "pipeline")


# --- the student ---------------------------------------------------------------------------------------------


RANDOM = "-random"  # ends the name of a student that starts from fresh weights, as BK-SDM's Table 3 has it
COMPARED = ("bk-sdm-base", "bk-sdm-base" + RANDOM)  # with the profile's own variant, for fewer steps


def students(chapter: Chapter) -> list[str]:
    """The names of the book's students: the profile's own variant, then those that it is compared with."""
    own = chapter.profile.variant
    return [own, *(name for name in COMPARED if name != own)]


def untrained(unet: UNet2DConditionModel, name: str, seed: int) -> UNet2DConditionModel:
    """The student `name` of the teacher `unet` before training: a variant with carried weights, or `-random`."""
    if not name.endswith(RANDOM):
        return surgery.shrink(unet, name)
    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(surgery.student_config(unet.config, name.removesuffix(RANDOM)))


def student_stage(chapter: Chapter, variant: str, objective: KDCLoss) -> Artifact:
    """The stage behind `student`: its ``unet`` and ``log.jsonl``."""
    profile, latents_ = chapter.profile, latents_stage(chapter)
    steps = profile.distill_steps if variant == profile.variant else profile.comparison_steps
    params = {
        "variant": variant,
        "steps": steps,
        "batch": profile.distill_batch,
        "lr": profile.learning_rate,
        "seed": chapter.seed,
        "alpha": objective.alpha,
        "beta": objective.beta,
        "gamma": objective.gamma,
        "temperature": objective.temperature,
    }

    def make(work: Path) -> None:
        pipeline = teacher(chapter)
        student = untrained(pipeline.unet, variant, chapter.seed)
        distill(
            student,
            pipeline.unet,
            latents(chapter).of_classes(source(chapter).base),
            pipeline.scheduler,
            objective,
            steps=steps,
            batch=profile.distill_batch,
            lr=profile.learning_rate,
            seed=chapter.seed,
            folder=work,
            describe=f"distilling {variant}",
        )
        student.save_pretrained(work / "unet", safe_serialization=True)

    return chapter.store.get("student", make, params=params, inputs={"latents": latents_})


def student(chapter: Chapter, variant: str, objective: KDCLoss | None = None) -> StableDiffusionPipeline:
    """The teacher's pipeline with a distilled student's U-Net in it; the profile's own variant trains for longer."""
    pipeline = teacher(chapter)
    folder = student_stage(chapter, variant, objective or objective_of(chapter)) / "unet"
    pipeline.unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True)
    return pipeline


def student_log(chapter: Chapter, variant: str) -> list[dict[str, float]]:
    """The student's training log: step, loss and the unweighted terms of equation (6)."""
    lines = (student_stage(chapter, variant, objective_of(chapter)) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def objective_of(chapter: Chapter) -> KDCLoss:
    """Equation (6) with the profile's weights."""
    p = chapter.profile
    return KDCLoss(alpha=p.alpha, beta=p.beta, gamma=p.gamma, temperature=p.temperature)


# --- generated pictures and their scores ---------------------------------------------------------------------


def prompts(classes: Sequence[str], count: int) -> list[str]:
    """`count` class captions for each class, class after class."""
    return [data.caption_of(name) for name in classes for _ in range(count)]


def generate(
    chapter: Chapter,
    pipeline: StableDiffusionPipeline,
    classes: Sequence[str],
    count: int,
    *,
    seed: int | None = None,
    steps: int | None = None,
) -> ImageSet:
    """`count` pictures of each class from `pipeline`; labels count in the source's classes. `seed` and the sampler's
    `steps` replace the chapter's."""
    profile, known = chapter.profile, source(chapter).classes
    texts = prompts(classes, count)
    images = sampling.generate(
        pipeline,
        texts,
        seed=chapter.seed if seed is None else seed,
        steps=steps or profile.sampler_steps,
        guidance=profile.guidance,
    )
    labels = torch.tensor([known.index(name) for name in classes]).repeat_interleave(count)
    return ImageSet(images, labels, tuple(texts), known)


def generated(chapter: Chapter, who: str) -> ImageSet:
    """Pictures of the base classes by the ``teacher``, or by the student of the variant `who`; kept in the store."""
    profile, where = chapter.profile, source(chapter)
    made = teacher_stage(chapter) if who == "teacher" else student_stage(chapter, who, objective_of(chapter))
    params = {
        "who": who,
        "count": profile.generated_images,
        "steps": profile.sampler_steps,
        "guidance": profile.guidance,
        "seed": chapter.seed,
        "classes": where.base,
    }

    def make(work: Path) -> None:
        pipeline = teacher(chapter) if who == "teacher" else student(chapter, who)
        generate(chapter, pipeline, where.base, profile.generated_images).save(work)

    return ImageSet.load(
        chapter.store.get(
            "generated",
            make,
            params=params,
            inputs={"model": made} if made else {},
            outside=outside(chapter),
        ).path
    )


def accuracy(chapter: Chapter, images: ImageSet) -> Estimate:
    """The share of `images` that the judge reads as the class they were asked to be."""
    return class_accuracy(images.images, images.labels, judge(chapter))


def reconstructed(chapter: Chapter, images: ImageSet) -> ImageSet:
    """`images` through the teacher's autoencoder and back."""
    vae = teacher(chapter).vae
    return replace(images, images=decode(vae, encode(vae, images.images)[0]), masks=None)


# --- class by class ------------------------------------------------------------------------------------------


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


def arrival(chapter: Chapter, run: int) -> tuple[str, ...]:
    """The novel classes in the order of run number `run`: the source's own, then seeded shuffles."""
    classes = source(chapter).novel[: chapter.profile.continual_classes]
    if run == 0:
        return classes
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(chapter.seed * 1009 + run))
    return tuple(classes[k] for k in order.tolist())


def class_by_class(
    chapter: Chapter, method: str, *, run: int = 0, capacity: int | None = None, codec: str = "fp16"
) -> ClassByClass:
    """The distilled student learns the novel classes one after another by `method`; measured after every class.

    `run` numbers repetitions, each with a seed and an order of its own; `capacity` replaces the profile's.
    """
    profile, where, variant = chapter.profile, source(chapter), chapter.profile.variant
    student_, latents_ = student_stage(chapter, variant, objective_of(chapter)), latents_stage(chapter)
    order, seed = arrival(chapter, run), chapter.seed + run
    capacity = profile.capacity if capacity is None else capacity
    params = {
        "method": method,
        "order": order,
        "steps": profile.continual_steps,
        "batch": profile.continual_batch,
        "lr": profile.continual_rate,
        "ema": profile.continual_ema,
        "capacity": capacity,
        "policy": profile.policy,
        "codec": codec,
        "count": profile.continual_images,
        "sampler": [profile.continual_sampler_steps, profile.guidance],
        "seed": seed,
    }

    def make(work: Path) -> None:
        pipeline, classifier = student(chapter, variant), judge(chapter)
        stages = 1 if method == "joint" else len(order)
        count, side = profile.continual_images, where.size
        matrix = torch.full((stages, len(order)), float("nan"), dtype=torch.float64)
        images = torch.full((stages, len(order), count, 3, side, side), 255, dtype=torch.uint8)

        def drawn(unet: UNet2DConditionModel, classes: Sequence[str], count: int) -> ImageSet:
            pipeline.unet = unet
            return generate(chapter, pipeline, classes, count, seed=seed, steps=profile.continual_sampler_steps)

        def scores(made: ImageSet, classes: int) -> list[float]:
            parts = zip(made.images.chunk(classes), made.labels.chunk(classes), strict=True)
            return [class_accuracy(pictures, labels, classifier).value for pictures, labels in parts]

        def measure(stage: int, unet: UNet2DConditionModel) -> None:
            seen = order if method == "joint" else order[: stage + 2]  # with the next one, for forward transfer
            made = drawn(unet, seen, count)
            matrix[stage, : len(seen)] = torch.tensor(scores(made, len(seen)), dtype=torch.float64)
            known = len(seen) if method == "joint" else stage + 1
            images[stage, :known] = made.images.unflatten(0, (len(seen), count))[:known]

        def dream(unet: UNet2DConditionModel, classes: Sequence[str], count: int) -> LatentSet:
            return encode_set(pipeline, drawn(unet, classes, count))

        before = scores(drawn(pipeline.unet, order, count), len(order))
        memory = continual.learn(
            pipeline.unet,
            latents(chapter),
            order,
            pipeline.scheduler,
            method,
            steps=profile.continual_steps,
            batch=profile.continual_batch,
            lr=profile.continual_rate,
            ema=profile.continual_ema,
            capacity=capacity,
            policy=profile.policy,
            codec=codec,
            seed=seed,
            folder=work / "checkpoint",
            origin=origin_of(pipeline.vae),
            pixels=pictures(chapter, "train").images,
            encoder=lambda images: encode(pipeline.vae, images)[0],
            dreamer=dream,
            after_stage=measure,
        )
        base = drawn(pipeline.unet, where.base, max(2, count // 2))
        words = {
            "order": order,
            "before": before,
            "retention": class_accuracy(base.images, base.labels, classifier).value,
            "memory": memory,
        }
        save_file({"matrix": matrix, "images": images}, work / "run.safetensors")
        (work / "run.json").write_text(json.dumps(words))

    inputs = {"student": student_, "latents": latents_}
    made = chapter.store.get("class-by-class", make, version=2, params=params, inputs=inputs)
    tensors, words = load_file(made / "run.safetensors"), json.loads((made / "run.json").read_text())
    return ClassByClass(
        tuple(words["order"]),
        tensors["matrix"].numpy(),
        np.array(words["before"]),
        tensors["images"],
        words["retention"],
        words["memory"],
        made.manifest["seconds"],
        made.manifest["peak_bytes"],
    )
