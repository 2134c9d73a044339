"""`kdcdiff pretrain`: the recipe that made the small stack. Hours on two cores, minutes on a GPU.

Trainings with the loop of `kdcdiff.training`, each resumable; a recipe (`kdcdiff.training.protocols`) may leave out
those in brackets:

1. text          a small CLIP on the base classes; its text encoder becomes the pipeline's, as SD took CLIP's
2. [perceptual]  a classifier of the base classes; its maps make the autoencoder's perceptual loss, as LPIPS SD's
3. autoencoder   on the base classes, under flips and exposure
4. unet          the denoiser on the cached latents of the base classes
5. [decoder]     the autoencoder's other half, further; the latents stay
6. classifier    the independent classifier, on real images of all classes
7. [attributes]  the reader of what captions state, on real images of all classes in every combination
8. clip          the in-domain measure of prompt alignment, a second CLIP on all classes

No weight of the pipeline has seen a novel class, or a combination that the data set holds out. Everything is written
in fp16 with a log, provenance and checksums.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from kdcdiff.data.attributes import ATTRIBUTES, targets
from kdcdiff.data.image_set import ImageSet
from kdcdiff.data.latents import encode_set
from kdcdiff.data.sources import DRAW, DRAWN, Pictures, image_set
from kdcdiff.models.attribute_reader import AttributeReader, save_reader
from kdcdiff.models.classifier import Classifier, save_classifier
from kdcdiff.models.export import save_portable
from kdcdiff.models.initialization import pass_on
from kdcdiff.models.pipeline import (
    assemble,
    down_sampling,
    new_autoencoder,
    new_unet,
    text_encoder_of,
    train_tokenizer,
)
from kdcdiff.provenance import provenance, sha256_file
from kdcdiff.training.components import train_autoencoder, train_classifier, train_clip, train_unet
from kdcdiff.training.protocols import Recipe
from kdcdiff.training.readers import train_reader


def draw_base(recipe: Recipe) -> ImageSet:
    """Draw what the pipeline learns from: the base classes, as training may show them."""
    classes = DRAWN[recipe.dataset].BASE
    beside = {"pairs": recipe.pairs_per_class} if recipe.pairs_per_class else {}
    return image_set(DRAW[recipe.dataset]("train", classes, recipe.images_per_class, recipe.seed, **beside), classes)


def draw_all(recipe: Recipe) -> Pictures:
    """Draw what judges learn from: all classes; where there is a reader, other pictures and every combination."""
    classes, read = tuple(DRAWN[recipe.dataset].SPECIES), recipe.reader_steps > 0
    beside = {"pairs": recipe.extractor_pairs_per_class} if recipe.extractor_pairs_per_class else {}
    seed, draw = recipe.seed + read, DRAW[recipe.dataset]
    return draw("train", classes, recipe.extractor_images_per_class, seed, unseen=read, **beside)


def one_class(pictures: Pictures, images: ImageSet) -> ImageSet:
    """Take the pictures whose subjects are all of one class: what a classifier can be asked about."""
    rows = [k for k, p in enumerate(pictures) if len({s.name for s in getattr(p, "subjects", ())}) <= 1]
    return images.subset(torch.tensor(rows))


# --- the command ---------------------------------------------------------------------------------------------


def pretrain(work: Path, out: Path, recipe: Recipe, device: str = "cpu") -> None:
    """Run the recipe in `work` (resumable) on `device`; write `out`: pipeline, judges, logs, checksums."""
    base, drawn = draw_base(recipe), draw_all(recipe)
    everything = image_set(drawn, tuple(DRAWN[recipe.dataset].SPECIES))
    started = time.perf_counter()

    tokenizer = train_tokenizer(base.captions)
    clip_sizes = recipe.clip_steps, recipe.clip_batch
    text = train_clip(base, tokenizer, *clip_sizes, recipe.seed, work / "text", "text", device)
    perceptual_net = None
    if recipe.perceptual_net_steps:
        perceptual_net = train_classifier(
            base,
            recipe.perceptual_net_steps,
            recipe.classifier_batch,
            recipe.seed,
            work / "perceptual-net",
            "perceptual net",
            device,
        )
    vae = new_autoencoder(recipe.seed, recipe.autoencoder_widths).to(device)
    coding: dict[str, Any] = {
        "batch": recipe.autoencoder_batch,
        "lr": recipe.autoencoder_lr,
        "kl_weight": recipe.kl_weight,
        "perceptual_weight": recipe.perceptual_weight,
    }
    train_autoencoder(
        vae,
        base.images,
        perceptual_net,
        steps=recipe.autoencoder_steps,
        seed=recipe.seed,
        folder=work / "autoencoder",
        **coding,
    )
    unet = new_unet(recipe.seed, recipe.unet_widths, base.images.shape[-1] // down_sampling(vae))
    if recipe.pass_on:
        pass_on(unet, recipe.seed)
    pipeline = assemble(vae, unet, text_encoder_of(text), tokenizer).to(device)
    train_unet(
        pipeline,
        encode_set(pipeline, base),
        steps=recipe.unet_steps,
        batch=recipe.unet_batch,
        lr=recipe.unet_lr,
        dropout=recipe.caption_dropout,
        ema=recipe.ema,
        seed=recipe.seed,
        folder=work / "unet",
        even=recipe.even_timesteps,
        inner_steps=recipe.inner_steps,
    )
    if recipe.decoder_steps:
        train_autoencoder(
            vae,
            base.images,
            perceptual_net,
            steps=recipe.decoder_steps,
            seed=recipe.seed + 1,
            folder=work / "decoder",
            decoder_only=True,
            describe="decoder",
            **coding,
        )
    judges: dict[str, Any] = {"batch": recipe.classifier_batch, "seed": recipe.seed, "device": device}
    classifier = train_classifier(
        one_class(drawn, everything), recipe.classifier_steps, folder=work / "classifier", **judges
    )
    reader = None
    if recipe.reader_steps:
        attributes = ATTRIBUTES[recipe.dataset]
        reader = train_reader(
            everything.images,
            targets(drawn, attributes),
            attributes,
            steps=recipe.reader_steps,
            folder=work / "attributes",
            **judges,
        )
    clip_tokenizer = train_tokenizer(everything.captions)
    clip = train_clip(everything, clip_tokenizer, *clip_sizes, recipe.seed + 1, work / "clip", "clip", device)

    seconds = round(time.perf_counter() - started)
    publish(
        pipeline,
        classifier,
        reader,
        clip,
        clip_tokenizer,
        work,
        out,
        {"recipe": asdict(recipe), "seconds_of_last_run": seconds},
    )


def publish(
    pipeline: StableDiffusionPipeline,
    classifier: Classifier,
    reader: AttributeReader | None,
    clip: CLIPModel,
    clip_tokenizer: CLIPTokenizer,
    work: Path,
    out: Path,
    words: dict[str, Any],
) -> None:
    """Write `out`, in fp16 and whole or not at all: the weights, `work`'s logs, provenance with `words`, checksums."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_portable(pipeline.to(torch.float16), partial / "pipeline")
    save_classifier(classifier, partial / "classifier")
    if reader is not None:
        save_reader(reader, partial / "attributes")
    save_portable(clip.half(), partial / "clip")
    save_portable(clip_tokenizer, partial / "clip")
    (partial / "log").mkdir()
    for log in sorted(work.glob("*/log.jsonl")):
        shutil.copy(log, partial / "log" / f"{log.parent.name}.jsonl")
    (partial / "provenance.json").write_text(
        json.dumps({"command": "kdcdiff pretrain", **words, **provenance()}, indent=1)
    )
    files = sorted(f for f in partial.rglob("*") if f.is_file())
    (partial / "checksums.json").write_text(
        json.dumps({f.relative_to(partial).as_posix(): sha256_file(f) for f in files}, indent=1)
    )
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
