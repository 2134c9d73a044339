"""What a network costs: parameters, multiply-accumulates in each convention, kept activations, time and
memory.

Counts are exact and come from the meta device in about a second, without weights. Which tool counts what is
the subject of `kdcdiff.claims.counting`; here its conventions ``fvcore``, ``thop`` and ``all`` are applied to
a whole U-Net, to each of its stages, and to the pipeline around it. Times are measured, warm, and given with
their spread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdcdiff.errors import check
from kdcdiff.models import surgery, unet_files
from kdcdiff.models.configs import TOKENS, network_count
from kdcdiff.models.macs import Count
from kdcdiff.models.macs import count as count_call

CONVENTIONS = {
    "fvcore": "convolutions, linear layers, norms, up-sampling; no attention products (KDC-Diff's column)",
    "thop": "convolutions, linear layers, layer norms; no attention products (BK-SDM's column)",
    "all": "every matrix product, attention's too",
}


@dataclass(frozen=True)
class Part:
    """A stage's share: parameters, and one call's multiply-accumulates in each convention."""

    parameters: int
    macs: dict[str, int]


@dataclass(frozen=True)
class Complexity(Part):
    """A U-Net's cost at one input; `stages` add up to it, `kept_bytes` is what training keeps for its
    backward pass.
    """

    stages: dict[str, Part]
    kept_bytes: int
    latent: tuple[int, ...]  # (batch, channels, height, width)


def count(
    unet: UNet2DConditionModel | Mapping[str, Any],
    *,
    latent: int | None = None,
    tokens: int = TOKENS,
    batch: int = 1,
) -> Complexity:
    """Count one call of a U-Net, or of a U-Net's configuration, on latents (batch, channels, latent, latent).

    `latent` is the configuration's ``sample_size`` unless given (64 for a 512x512 picture), `tokens` the
    prompt's length.
    """
    config = unet if isinstance(unet, Mapping) else unet.config
    full = surgery.with_defaults(config)
    size = full["sample_size"] or 64 if latent is None else latent
    check(isinstance(size, int) and size >= 1, "latent", size, "a whole number from 1")
    check(min(tokens, batch) >= 1, "tokens and batch", (tokens, batch), "whole numbers from 1")
    return _count(json.dumps(full, default=list, sort_keys=True), size, tokens, batch)


@lru_cache(maxsize=256)
def _count(config: str, size: int, tokens: int, batch: int) -> Complexity:
    net = surgery.on_meta(json.loads(config))
    inputs = meta_inputs(net, size, tokens, batch)
    whole = count_call(net, *inputs)
    stages = {name: _part(c) for name, c in count_parts(net, inputs).items()}
    return Complexity(whole.parameters, _part(whole).macs, stages, kept_bytes(net, inputs), tuple(inputs[0].shape))


def meta_inputs(
    net: UNet2DConditionModel, size: int, tokens: int = TOKENS, batch: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents (batch, channels, size, size), time steps and prompts (batch, tokens, width), without
    values.
    """
    with torch.device("meta"):
        x = torch.empty(batch, net.config.in_channels, size, size)
        return x, torch.zeros(batch), torch.empty(batch, tokens, net.config.cross_attention_dim)


def _part(c: Count) -> Part:
    return Part(c.parameters, {name: c.macs(name) for name in CONVENTIONS})


def count_parts(net: UNet2DConditionModel, inputs: tuple[Any, ...], fine: bool = False) -> dict[str, Count]:
    """Each stage of a U-Net on the meta device counted alone, at the input that it gets in the whole; they
    add up to it.

    `fine` goes one level deeper, to the layers of each stage (``down_blocks.0.resnets.1``).
    """
    modules = {name: m for name, m in net.named_modules() if _is_part(name, m, fine)}
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: calls.setdefault(name, (args, kwargs)) and None

    handles = [m.register_forward_pre_hook(note(name), with_kwargs=True) for name, m in modules.items()]
    try:
        with torch.no_grad():
            net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: count_call(modules[name], *args, **kwargs) for name, (args, kwargs) in calls.items()}


def _is_part(name: str, module: nn.Module, fine: bool) -> bool:
    parts = name.split(".")
    if not name:
        return False
    if parts[0] not in ("down_blocks", "mid_block", "up_blocks"):
        return len(parts) == 1 and any(True for _ in module.parameters())
    depth = 1 if parts[0] == "mid_block" else 2
    return len(parts) == (depth + 2 if fine else depth) and not isinstance(module, nn.ModuleList)


class _FusedAttention(torch.autograd.Function):
    """What a fused attention keeps for its backward pass: q, k, v, its result and one number per query. No
    values.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, length, width = q.shape
        out = q.new_empty(n, length, heads, width).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_empty(n, heads, length, dtype=torch.float32))
        return out


class _Fused(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _FusedAttention.apply(named["query"], named["key"], named["value"])
        return func(*args, **(kwargs or {}))


def kept_bytes(net: UNet2DConditionModel, inputs: tuple[Any, ...]) -> int:
    """Bytes of activations that one training step keeps between forward and backward, with fused
    attention.
    """
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
    """One picture: the text encoder (twice with guidance), `steps` U-Net calls (twice each with guidance),
    the decoder.
    """

    unet: Complexity
    text_encoder: Part
    decoder: Part
    steps: int
    guidance: bool

    @property
    def parameters(self) -> int:
        return self.unet.parameters + self.text_encoder.parameters + self.decoder.parameters

    def macs(self, convention: str) -> int:
        """Multiply-accumulates of one picture in one of `CONVENTIONS`."""
        check(convention in CONVENTIONS, "convention", convention, f"one of {', '.join(CONVENTIONS)}")
        calls = 2 if self.guidance else 1
        looped = calls * (self.text_encoder.macs[convention] + self.steps * self.unet.macs[convention])
        return looped + self.decoder.macs[convention]


def pipeline_cost(
    unet: Complexity, folder: Path | None = None, *, steps: int = 25, guidance: bool = True
) -> PipelineCost:
    """The cost of a picture with this U-Net and the companions of a pipeline folder, or of Stable Diffusion
    1.x.
    """
    check(isinstance(steps, int) and steps >= 1, "steps", steps, "a whole number from 1")
    if folder is None:
        text, decoder = network_count("text-encoder"), network_count("image-decoder", unet.latent[-1])
    else:
        text, decoder = _text_encoder(folder), _decoder(folder, unet.latent[-1])
    return PipelineCost(unet, _part(text), _part(decoder), steps, guidance)


def _text_encoder(folder: Path) -> Count:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**unet_files.read_json(folder / "text_encoder" / "config.json"))
    with torch.device("meta"):
        return count_call(
            CLIPTextModel(config).eval(), torch.zeros(1, config.max_position_embeddings, dtype=torch.long)
        )


def _decoder(folder: Path, latent: int) -> Count:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(unet_files.read_json(folder / "vae" / "config.json")).eval()
        z = torch.empty(1, vae.config.latent_channels, latent, latent)
        after = count_call(vae.post_quant_conv, z) if vae.post_quant_conv is not None else Count()
        return after + count_call(vae.decoder, z)
