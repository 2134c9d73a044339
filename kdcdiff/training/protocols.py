"""What trainings are told: the papers' printed settings, and the shipped stack's recipe. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HERE: dict[str, Any] = {  # the objective, and settings of `distill`; what the papers leave out is this
    "objective": "kdc-diff",  # a key of `distill.OBJECTIVES`
    "steps": 2000,
    "batch": 32,
    "accumulate": 1,
    "lr": 5e-4,
    "schedule": "cosine",
    "precision": "no",
    "checkpointing": False,
    "ema": 0.0,
    "snr_gamma": 0.0,
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "here": HERE,
    "kdc-diff": HERE | {"batch": 1, "lr": 5e-5, "precision": "fp16", "checkpointing": True},
    "bk-sdm": HERE
    | {"objective": "bk-sdm", "batch": 64, "accumulate": 4, "lr": 5e-5, "schedule": "constant", "steps": 50_000},
}

KL_WEIGHT, PERCEPTUAL_WEIGHT = 1e-5, 0.5  # of the autoencoder's loss


@dataclass(frozen=True)
class Recipe:
    """Every number of the pretraining."""

    seed: int = 0
    images_per_class: int = 1500  # drawn for each base class
    extractor_images_per_class: int = 600  # drawn for each of all classes
    clip_steps: int = 600
    clip_batch: int = 128
    perceptual_net_steps: int = 400
    autoencoder_steps: int = 9000
    autoencoder_batch: int = 16
    autoencoder_lr: float = 2e-3
    kl_weight: float = KL_WEIGHT
    perceptual_weight: float = PERCEPTUAL_WEIGHT
    unet_steps: int = 6000
    unet_batch: int = 32
    unet_lr: float = 1e-3
    caption_dropout: float = 0.1
    ema: float = 0.999
    classifier_steps: int = 600
    classifier_batch: int = 64
