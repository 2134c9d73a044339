"""Stable Diffusion's published configurations: the U-Nets of 1.x and 2.x, and 1.x's text encoder and autoencoder."""

from __future__ import annotations

from typing import Any

WIDTHS = (320, 640, 1280, 1280)  # channels of the U-Net's four stages, outermost first
LATENT = 64  # a 512x512 image is a 64x64 latent
TOKENS = 77  # CLIP's prompt length

CONFIGS: dict[str, dict[str, Any]] = {  # of the U-Nets; what is not named is diffusers' default
    "sd-1": {"sample_size": LATENT, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd-2": {
        "sample_size": LATENT,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
TEXT_ENCODER: dict[str, Any] = {  # CLIP ViT-L/14's text model
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": TOKENS,
    "vocab_size": 49408,
    "projection_dim": 768,
}
AUTOENCODER: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
