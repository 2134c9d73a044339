"""What a network costs: parameters, multiply-accumulates in each convention, and the activations that training keeps.

Counts are exact and come from the meta device in about a second, without weights: of a whole U-Net, of each of its
stages, and of the pipeline around it. What each convention counts is said in `kdcdiff.models.macs`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdcdiff.errors import check
from kdcdiff.models import macs, surgery, unet_files
from kdcdiff.models.configs import AUTOENCODER, LATENT, TEXT_ENCODER, TOKENS
from kdcdiff.models.macs import CONVENTIONS, Count

if TYPE_CHECKING:  # see kdcdiff.models.surgery
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True, kw_only=True)
class Complexity(Count):
    """A U-Net's cost at one input, and that of its stages, which add up to it."""

    stages: dict[str, Count]
    kept_bytes: int  # of activations, kept by a training step for its backward pass
    latent: tuple[int, ...]  # (batch, channels, height, width)


def count(
    unet: UNet2DConditionModel | Mapping[str, Any],
    *,
    latent: int | None = None,
    tokens: int = TOKENS,
    batch: int = 1,
) -> Complexity:
    """Count one call of a U-Net, or of a U-Net's configuration, on latents (batch, channels, latent, latent).

    `latent` is the configuration's ``sample_size`` unless given (64 for a 512x512 picture); `tokens` is the prompt's
    length. UserError: a size that is not a whole number from 1.
    """
    config = unet if isinstance(unet, Mapping) else unet.config
    full = surgery.with_defaults(config)
    size = full["sample_size"] or LATENT if latent is None else latent
    check(isinstance(size, int) and size >= 1, "latent", size, "a whole number from 1")
    check(min(tokens, batch) >= 1, "tokens and batch", (tokens, batch), "whole numbers from 1")
    return _count(json.dumps(full, default=list, sort_keys=True), size, tokens, batch)


@lru_cache(maxsize=256)
def _count(config: str, size: int, tokens: int, batch: int) -> Complexity:
    net = surgery.on_meta(json.loads(config))
    inputs = meta_inputs(net, size, tokens, batch)
    stages = count_parts(net, inputs)
    whole = sum(stages.values(), Count())
    kept = kept_bytes(net, inputs)
    return Complexity(whole.parameters, whole.macs, stages=stages, kept_bytes=kept, latent=tuple(inputs[0].shape))


def meta_inputs(
    net: UNet2DConditionModel, size: int, tokens: int = TOKENS, batch: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Make latents (batch, channels, size, size), time steps (batch,), prompts (batch, tokens, width), all on meta."""
    with torch.device("meta"):
        x = torch.empty(batch, net.config.in_channels, size, size)
        return x, torch.zeros(batch), torch.empty(batch, tokens, net.config.cross_attention_dim)


def count_parts(net: UNet2DConditionModel, inputs: tuple[Any, ...], fine: bool = False) -> dict[str, Count]:
    """Count each stage of a U-Net on meta by itself, at the input that it gets in the whole; they add up to it.

    `fine` goes one level deeper, to the layers of each stage (``down_blocks.0.resnets.1``).
    """
    parts = {name: m for name, m in net.named_modules() if _is_part(name, m, fine)}
    return macs.count_parts(net, parts, *inputs)


def _is_part(name: str, module: nn.Module, fine: bool) -> bool:
    """Say whether a module is a stage (`fine`: a layer of a stage), or stands outside the stages and has weights."""
    parts = name.split(".")
    if not name:
        return False
    if parts[0] not in ("down_blocks", "mid_block", "up_blocks"):
        return len(parts) == 1 and any(True for _ in module.parameters())
    depth = 1 if parts[0] == "mid_block" else 2
    return len(parts) == (depth + 2 if fine else depth) and not isinstance(module, nn.ModuleList)


class _FusedAttention(torch.autograd.Function):
    """What a fused attention keeps for its backward pass: q, k, v, its result, one number a query. No values."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, length, width = q.shape
        out = q.new_empty(n, length, heads, width).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(n, heads, length, dtype=torch.float32))
        return out


class _Fused(TorchFunctionMode):
    """Puts `_FusedAttention` in the place of every attention while it lasts."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _FusedAttention.apply(named["query"], named["key"], named["value"])
        return func(*args, **(kwargs or {}))


def kept_bytes(net: UNet2DConditionModel, inputs: tuple[Any, ...]) -> int:
    """Count the bytes of activations that a training step with fused attention keeps from forward to backward."""
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other storage gets its number
        return tensor

    with _Fused(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(*inputs)
    return sum(storage.nbytes() for storage in kept.values())


# --- the pipeline around it


@dataclass(frozen=True)
class PipelineCost:
    """One picture: the text encoder and `steps` U-Net calls (with guidance each of them twice), then the decoder."""

    unet: Complexity
    text_encoder: Count
    decoder: Count
    steps: int
    guidance: bool

    @property
    def parameters(self) -> int:
        return self.unet.parameters + self.text_encoder.parameters + self.decoder.parameters

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of one picture, by convention."""
        calls = 2 if self.guidance else 1
        looped = {c: calls * (self.text_encoder.macs[c] + self.steps * self.unet.macs[c]) for c in CONVENTIONS}
        return {c: looped[c] + self.decoder.macs[c] for c in CONVENTIONS}


def pipeline_cost(
    unet: Complexity, folder: Path | None = None, *, steps: int = 25, guidance: bool = True
) -> PipelineCost:
    """Count a picture made with this U-Net and the companions in a pipeline folder, or else Stable Diffusion 1.x's.

    UserError: no whole number of steps, or a folder without the companions' configurations.
    """
    check(isinstance(steps, int) and steps >= 1, "steps", steps, "a whole number from 1")
    text, autoencoder = TEXT_ENCODER, AUTOENCODER
    if folder is not None:
        text, autoencoder = (unet_files.read_json(folder / part / "config.json") for part in ("text_encoder", "vae"))
    return PipelineCost(unet, count_text_encoder(text), count_decoder(autoencoder, unet.latent[-1]), steps, guidance)


def count_text_encoder(config: Mapping[str, Any]) -> Count:
    """Count one prompt of full length through the text encoder of a `CLIPTextConfig`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        net = CLIPTextModel(CLIPTextConfig(**config)).eval()
        return macs.count(net, torch.zeros(1, net.config.max_position_embeddings, dtype=torch.long))


def count_decoder(config: Mapping[str, Any], latent: int) -> Count:
    """Count a latent of `latent` squared through the decoding half of an autoencoder, its first 1x1 convolution too."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(config)).eval()
        z = torch.empty(1, vae.config.latent_channels, latent, latent)
        before = macs.count(vae.post_quant_conv, z) if vae.post_quant_conv is not None else Count()
        return before + macs.count(vae.decoder, z)
