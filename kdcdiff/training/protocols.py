"""What trainings are told: the papers' printed settings, and the shipped stack's recipe. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdcdiff.errors import check

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
    """Every number of the pretraining; the defaults are those of the stack that ships."""

    dataset: str = "flora"  # that it draws: flora or garden
    autoencoder_widths: tuple[int, ...] = (16, 32, 48, 64)  # channels of its levels; each but the last halves the side
    unet_widths: tuple[int, ...] = (48, 64, 72, 72)  # channels of its stages, outermost first
    seed: int = 0
    images_per_class: int = 1500  # drawn for each base class
    pairs_per_class: int = 0  # and beside a subject of another base class; of a garden
    extractor_images_per_class: int = 600  # drawn for each of all classes
    extractor_pairs_per_class: int = 0
    clip_steps: int = 600
    clip_batch: int = 128
    perceptual_net_steps: int = 400  # 0: the autoencoder learns without one
    autoencoder_steps: int = 9000
    autoencoder_batch: int = 16
    autoencoder_lr: float = 2e-3
    decoder_steps: int = 0  # of the decoder alone, after the U-Net; the latents stay
    kl_weight: float = KL_WEIGHT
    perceptual_weight: float = PERCEPTUAL_WEIGHT
    unet_steps: int = 6000
    unet_batch: int = 32
    unet_lr: float = 1e-3
    even_timesteps: bool = False  # spaced evenly within a batch
    pass_on: bool = False  # starts with layers that hand on what they read: `kdcdiff.models.initialization`
    inner_steps: int = 0  # of them the first, in which the innermost stages learn; 0: in all
    caption_dropout: float = 0.1
    ema: float = 0.999
    classifier_steps: int = 600
    classifier_batch: int = 64
    reader_steps: int = 0  # of the reader of attributes; 0: there is none

    def __post_init__(self) -> None:
        for name in ("pairs_per_class", "extractor_pairs_per_class"):
            pairs = getattr(self, name)
            check(self.dataset == "garden" or not pairs, name, pairs, "must be 0: a picture of flora has one subject")


RECIPES = {
    "flora": Recipe(),
    "garden": Recipe(  # latents of 16x16 and Stable Diffusion's ratio of widths, so that its inner stages do something
        dataset="garden",
        autoencoder_widths=(16, 32, 48),
        unet_widths=(24, 48, 96, 96),
        images_per_class=700,
        pairs_per_class=250,
        extractor_images_per_class=300,
        extractor_pairs_per_class=80,
        clip_steps=300,
        clip_batch=64,
        perceptual_net_steps=0,
        autoencoder_steps=2500,
        decoder_steps=600,
        unet_steps=10_000,
        unet_batch=16,
        even_timesteps=True,
        pass_on=True,
        inner_steps=1500,
        ema=0.998,
        classifier_steps=500,
        classifier_batch=48,
        reader_steps=500,
    ),
}
