"""Stable Diffusion's own configurations, and the networks that they name, on the meta device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from kdcdiff.errors import check
from kdcdiff.models.macs import Count, count

WIDTHS = (320, 640, 1280, 1280)  # channels of Stable Diffusion's four stages
LATENT = 64  # a 512x512 image is a 64x64 latent
TOKENS = 77  # CLIP's prompt length
SD1 = {"sample_size": LATENT, "cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {
    "sample_size": LATENT,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
OUTER_REMOVED = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": WIDTHS[:3],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd-1": SD1,
    "sd-2": SD2,
    "down-up-removed": SD1 | OUTER_REMOVED,
    "mid-removed": SD1 | {"mid_block_type": None},
    "fewer-pairs": SD1 | {"layers_per_block": 1},
    "bk-sdm-base": SD1 | {"layers_per_block": 1},
    "bk-sdm-small": SD1 | {"layers_per_block": 1, "mid_block_type": None},
    "bk-sdm-tiny": SD1 | OUTER_REMOVED | {"layers_per_block": 1, "mid_block_type": None},
    "kdc-described": SD1 | OUTER_REMOVED | {"layers_per_block": 1},
}
COMPANIONS = ("text-encoder", "image-decoder")  # the rest of a Stable Diffusion v1 pipeline


@lru_cache(maxsize=16)
def unet(name: str) -> Any:
    """The named U-Net as a diffusers `UNet2DConditionModel` on the meta device; shared: leave it as it is."""
    import torch
    from diffusers import UNet2DConditionModel

    check(name in CONFIGS, "network", name, f"one of {', '.join(CONFIGS)}")
    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIGS[name])


@lru_cache(maxsize=64)
def network_count(name: str, latent: int = LATENT) -> Count:
    """Count one call of a named network: a latent of `latent` squared, a prompt of 77 tokens."""
    import torch

    if name == "text-encoder":
        module = _text_encoder()
        return count(module, torch.zeros(1, TOKENS, dtype=torch.long, device="meta"))
    if name == "image-decoder":
        return _decoder_count(latent)
    net = unet(name)
    sample = torch.empty(1, 4, latent, latent, device="meta")
    prompt = torch.empty(1, TOKENS, net.config.cross_attention_dim, device="meta")
    return count(net, sample, torch.zeros(1, device="meta"), prompt)


def _text_encoder() -> Any:
    """CLIP ViT-L/14's text model, which conditions Stable Diffusion v1."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=TOKENS,
        vocab_size=49408,
        projection_dim=768,
    )
    with torch.device("meta"):
        return CLIPTextModel(config).eval()


def _decoder_count(latent: int) -> Count:
    """The decoding half of Stable Diffusion's autoencoder, with its 1x1 convolution before the decoder."""
    import torch
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
        x = torch.empty(1, 4, latent, latent)
    return count(vae.post_quant_conv, x) + count(vae.decoder, x)
