"""Three tiny pipelines that differ in all that a size can be: pixels, latents, channels, prompts, prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from kdcdiff.models.pipeline import SCHEDULER, train_tokenizer


@dataclass(frozen=True)
class Sizes:
    """What `make` makes a pipeline of."""

    pixels: int
    down: tuple[int, ...]  # channels of the autoencoder's stages, all but one of which halve
    latents: int  # channels
    text: int  # width of the prompts
    tokens: int
    scheduler: Any
    prediction: str
    unet: dict[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Of a latent."""
        return self.pixels // 2 ** (len(self.down) - 1)


SIZES = {
    "sd-1": Sizes(32, (8, 8, 8), 4, 16, 16, PNDMScheduler, "epsilon", {"attention_head_dim": 2}),
    "sd-2": Sizes(
        24, (8, 8), 4, 24, 20, EulerDiscreteScheduler, "v_prediction",
        {"attention_head_dim": (2, 4, 4), "use_linear_projection": True},
    ),
    "flora": Sizes(32, (8, 8, 8, 8), 8, 8, 32, DDIMScheduler, "v_prediction", {"attention_head_dim": 2}),
}  # fmt: skip


def make(name: str, prompts: Sequence[str]) -> StableDiffusionPipeline:
    """Make the pipeline `name` of `SIZES`, of seeded random weights, that spells `prompts`."""
    own = SIZES[name]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(prompts, size=560)
    tokenizer.model_max_length = own.tokens
    special = {f"{word}_token_id": getattr(tokenizer, f"{word}_token_id") for word in ("bos", "eos")}
    text = CLIPTextConfig(
        hidden_size=own.text, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=own.tokens, vocab_size=len(tokenizer), pad_token_id=tokenizer.eos_token_id, **special,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=own.side, in_channels=own.latents, out_channels=own.latents, block_out_channels=(8, 16, 16),
        layers_per_block=2, norm_num_groups=4, cross_attention_dim=own.text,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), **own.unet,
    )  # fmt: skip
    vae = AutoencoderKL(
        sample_size=own.pixels, block_out_channels=own.down, norm_num_groups=4, latent_channels=own.latents,
        down_block_types=("DownEncoderBlock2D",) * len(own.down), up_block_types=("UpDecoderBlock2D",) * len(own.down),
    )  # fmt: skip
    noise = {name: SCHEDULER[name] for name in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")}
    if own.scheduler is PNDMScheduler:
        noise["skip_prk_steps"] = True  # as Stable Diffusion ships it
    scheduler = own.scheduler(**noise, prediction_type=own.prediction, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
