"""The road's stages: each turns artifacts into the next artifact, and a notebook tells its story over them.

    pictures -> latents -> teacher -> student -> class-by-class -> images -> metrics

Every function takes the open `Chapter`, whose profile gives the sizes and whose store keeps the results. Whatever a
stage depends on is in its key, so chapters can ask for the same stage and it is made once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from kdcdiff.book.chapter import Chapter
from kdcdiff.data import sources
from kdcdiff.data.image_set import ImageSet, caption_of
from kdcdiff.data.latents import LatentSet, decode, encode, encode_set
from kdcdiff.data.sources import Source
from kdcdiff.metrics.accuracy import class_accuracy
from kdcdiff.metrics.estimate import Estimate
from kdcdiff.models import surgery
from kdcdiff.models.classifier import Classifier, load_classifier, save_classifier
from kdcdiff.models.pipeline import load_clip, load_pipeline, train_tokenizer
from kdcdiff.models.shipped import assets_key
from kdcdiff.sampling import generate as sampling
from kdcdiff.store import Artifact
from kdcdiff.training.components import fine_tune, train_classifier, train_clip
from kdcdiff.training.distill import distill
from kdcdiff.training.losses import KDCLoss


def source(chapter: Chapter) -> Source:
    """The chapter's data set and its classes, base and novel."""
    return sources.open_source(chapter.dataset, chapter.profile.classes)


# --- pictures and latents ------------------------------------------------------------------------------------


def images_artifact(chapter: Chapter, split: str) -> Artifact:
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


def images(chapter: Chapter, split: str) -> ImageSet:
    """All classes' pictures of a split, ``train`` or ``test``."""
    return ImageSet.load(images_artifact(chapter, split).path)


def latents_artifact(chapter: Chapter, split: str = "train") -> Artifact:
    """The stage behind `latents`; this and its like are for stages that read it."""
    pictures_, teacher_ = images_artifact(chapter, split), teacher_artifact(chapter)

    def make(work: Path) -> None:
        encode_set(teacher(chapter), ImageSet.load(pictures_.path)).save(work)

    inputs = {"pictures": pictures_} | ({"teacher": teacher_} if teacher_ else {})
    return chapter.store.get("latents", make, inputs=inputs, outside=external_inputs(chapter))


def latents(chapter: Chapter, split: str = "train") -> LatentSet:
    """A split's pictures of all classes as the teacher's autoencoder and text encoder see them."""
    return LatentSet.load(latents_artifact(chapter, split).path)


# --- the judge and the teacher -------------------------------------------------------------------------------


def classifier(chapter: Chapter) -> Classifier:
    """The independent classifier: the shipped one for flora; a folder's own, trained on its real images only."""
    if source(chapter).root is None:
        return load_classifier()
    pictures_, steps = images_artifact(chapter, "train"), chapter.profile.classifier_steps

    def make(work: Path) -> None:
        save_classifier(train_classifier(ImageSet.load(pictures_.path), steps, 64, chapter.seed, work), work)

    return load_classifier(
        chapter.store.get(
            "judge", make, params={"steps": steps, "seed": chapter.seed}, inputs={"pictures": pictures_}
        ).path
    )


def clip(chapter: Chapter) -> tuple[CLIPModel, CLIPTokenizer]:
    """The small CLIP of prompt alignment: the shipped one for flora; a folder's own, trained on all its classes."""
    if source(chapter).root is None:
        return load_clip()
    pictures_, steps = images_artifact(chapter, "train"), chapter.profile.classifier_steps

    def make(work: Path) -> None:
        images = ImageSet.load(pictures_.path)
        tokenizer = train_tokenizer(images.captions)
        batch = min(128, len(images))
        model = train_clip(images, tokenizer, steps, batch, chapter.seed, work, "scorer")
        model.save_pretrained(work, safe_serialization=True)
        tokenizer.save_pretrained(work)

    params = {"steps": steps, "seed": chapter.seed}
    return load_clip(chapter.store.get("scorer", make, params=params, inputs={"pictures": pictures_}).path)


def teacher_artifact(chapter: Chapter) -> Artifact | None:
    """None: the teacher ships. Otherwise the shipped one, fine-tuned on the folder's base classes."""
    where, profile = source(chapter), chapter.profile
    if where.root is None:
        return None
    pictures_ = images_artifact(chapter, "train")
    params = {
        "perceptual_net_steps": profile.classifier_steps // 2,
        "autoencoder_steps": profile.autoencoder_steps,
        "steps": profile.teacher_steps,
        "batch": profile.distill_batch,
        "seed": chapter.seed,
        "teacher": profile.teacher,
    }

    def make(work: Path) -> None:
        pipeline, images = load_pipeline(profile.teacher), ImageSet.load(pictures_.path)
        fine_tune(
            pipeline,
            images.of_classes(where.base),
            perceptual_net_steps=profile.classifier_steps // 2,
            autoencoder_steps=profile.autoencoder_steps,
            unet_steps=profile.teacher_steps,
            batch=profile.distill_batch,
            seed=chapter.seed,
            folder=work / "checkpoint",
        )
        pipeline.save_pretrained(work / "pipeline", safe_serialization=True)

    return chapter.store.get(
        "teacher", make, params=params, inputs={"pictures": pictures_}, outside={"assets": assets_key()}
    )


def external_inputs(chapter: Chapter) -> dict[str, str]:
    """What a stage that reads the teacher names as its outside input: the shipped files, and any other teacher."""
    name = chapter.profile.teacher
    return {"assets": assets_key()} | ({} if name == "flora" else {"teacher": name})


def teacher(chapter: Chapter) -> StableDiffusionPipeline:
    """The teacher's pipeline."""
    made = teacher_artifact(chapter)
    return load_pipeline(chapter.profile.teacher if made is None else made / "pipeline")


# --- the student ---------------------------------------------------------------------------------------------


RANDOM = "-random"  # ends the name of a student that starts from fresh weights, as BK-SDM's Table 3 has it
COMPARED = ("bk-sdm-base", "bk-sdm-base" + RANDOM)  # with the profile's own variant, for fewer steps


def students(chapter: Chapter) -> list[str]:
    """The names of the book's students: the profile's own variant, then those that it is compared with."""
    own = chapter.profile.variant
    return [own, *(name for name in COMPARED if name != own)]


def init_student(unet: UNet2DConditionModel, name: str, seed: int) -> UNet2DConditionModel:
    """The student `name` of the teacher `unet` before training: a variant with carried weights, or `-random`."""
    if not name.endswith(RANDOM):
        return surgery.shrink(unet, name)
    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(surgery.student_config(unet.config, name.removesuffix(RANDOM)))


def student_artifact(chapter: Chapter, variant: str, objective: KDCLoss) -> Artifact:
    """The stage behind `student`: its ``unet`` and ``log.jsonl``."""
    profile, latents_ = chapter.profile, latents_artifact(chapter)
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
        student = init_student(pipeline.unet, variant, chapter.seed)
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
    folder = student_artifact(chapter, variant, objective or kdc_loss(chapter)) / "unet"
    pipeline.unet = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True)
    return pipeline


def student_log(chapter: Chapter, variant: str) -> list[dict[str, float]]:
    """The student's training log: step, loss and the unweighted terms of equation (6)."""
    lines = (student_artifact(chapter, variant, kdc_loss(chapter)) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def kdc_loss(chapter: Chapter) -> KDCLoss:
    """Equation (6) with the profile's weights."""
    p = chapter.profile
    return KDCLoss(alpha=p.alpha, beta=p.beta, gamma=p.gamma, temperature=p.temperature)


# --- generated pictures and their scores ---------------------------------------------------------------------


def prompts(classes: Sequence[str], count: int) -> list[str]:
    """`count` class captions for each class, class after class."""
    return [caption_of(name) for name in classes for _ in range(count)]


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
    made = teacher_artifact(chapter) if who == "teacher" else student_artifact(chapter, who, kdc_loss(chapter))
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
            outside=external_inputs(chapter),
        ).path
    )


def accuracy(chapter: Chapter, images: ImageSet) -> Estimate:
    """The share of `images` that the judge reads as the class they were asked to be."""
    return class_accuracy(images.images, images.labels, classifier(chapter))


def reconstructed(chapter: Chapter, images: ImageSet) -> ImageSet:
    """`images` through the teacher's autoencoder and back."""
    vae = teacher(chapter).vae
    return replace(images, images=decode(vae, encode(vae, images.images)[0]), masks=None)
