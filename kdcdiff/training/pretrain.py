"""`kdcdiff pretrain`: the recipe that made the small stack. Hours on two cores, minutes on a GPU.

Six trainings with the loop of `kdcdiff.training`, each resumable:

1. text        a small CLIP on the base classes; its text encoder becomes the pipeline's, as SD took CLIP's
2. perceptual  a classifier of the base classes; its feature maps make the autoencoder's perceptual loss, as LPIPS SD's
3. autoencoder on the base classes, under flips and exposure
4. unet        the denoiser on the cached latents of the base classes
5. classifier  the independent classifier, on real images of all classes
6. clip        the in-domain measure of prompt alignment, a second CLIP on all classes

No weight of the pipeline has seen a novel class. Everything is written in fp16 with a log, provenance and checksums.
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

from kdcdiff.data import flora
from kdcdiff.data.latents import encode_set
from kdcdiff.data.sources import load_flora
from kdcdiff.models.classifier import Classifier, save_classifier
from kdcdiff.models.export import save_portable
from kdcdiff.models.pipeline import assemble, new_autoencoder, new_unet, text_encoder_of, train_tokenizer
from kdcdiff.provenance import provenance, sha256_file
from kdcdiff.training.components import train_autoencoder, train_classifier, train_clip, train_unet
from kdcdiff.training.protocols import Recipe

# --- the command ---------------------------------------------------------------------------------------------


def pretrain(work: Path, out: Path, recipe: Recipe, device: str = "cpu") -> None:
    """Run the recipe in `work` (resumable) on `device`; write `out`: pipeline, classifier, clip, logs, checksums."""
    base = load_flora("train", flora.BASE, recipe.images_per_class, recipe.seed)
    everything = load_flora("train", tuple(flora.SPECIES), recipe.extractor_images_per_class, recipe.seed)
    started = time.perf_counter()

    tokenizer = train_tokenizer(base.captions)
    clip_sizes = recipe.clip_steps, recipe.clip_batch
    text = train_clip(base, tokenizer, *clip_sizes, recipe.seed, work / "text", "text", device)
    perceptual_net = train_classifier(
        base,
        recipe.perceptual_net_steps,
        recipe.classifier_batch,
        recipe.seed,
        work / "perceptual-net",
        "perceptual net",
        device,
    )
    vae = new_autoencoder(recipe.seed).to(device)
    train_autoencoder(
        vae,
        base.images,
        perceptual_net,
        steps=recipe.autoencoder_steps,
        batch=recipe.autoencoder_batch,
        lr=recipe.autoencoder_lr,
        seed=recipe.seed,
        folder=work / "autoencoder",
        kl_weight=recipe.kl_weight,
        perceptual_weight=recipe.perceptual_weight,
    )
    pipeline = assemble(vae, new_unet(recipe.seed), text_encoder_of(text), tokenizer).to(device)
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
    )
    classifier = train_classifier(
        everything, recipe.classifier_steps, recipe.classifier_batch, recipe.seed, work / "classifier", device=device
    )
    clip_tokenizer = train_tokenizer(everything.captions)
    clip = train_clip(everything, clip_tokenizer, *clip_sizes, recipe.seed + 1, work / "clip", "clip", device)

    seconds = round(time.perf_counter() - started)
    publish(
        pipeline,
        classifier,
        clip,
        clip_tokenizer,
        work,
        out,
        {"recipe": asdict(recipe), "seconds_of_last_run": seconds},
    )


def publish(
    pipeline: StableDiffusionPipeline,
    classifier: Classifier,
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
