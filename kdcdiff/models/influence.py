"""What each part of a U-Net does: how far its prediction moves when that part alone is bypassed.

A *part* is named as in diffusers' own parameter names: a stage (``mid_block``, ``down_blocks.3``, ``up_blocks.0``) or
one R-T pair of a stage (``down_blocks.1.1``: ``resnets.1`` and, where the stage has them, ``attentions.1``). It works
on any Stable Diffusion U-Net of diffusers: small, SD-1.x or SD-2.x.

To *bypass* a residual block is to keep its shortcut and drop what it learnt to add: the identity where its input and
output have the same channels; its 1x1 `conv_shortcut` where they differ (every layer of an up stage, which reads a skip
connection beside its input, and the first layer of a widening stage). A transformer is bypassed as the identity. A
bypassed stage keeps its down- or up-sampler, so every shape stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from kdcdiff.errors import check
from kdcdiff.models.noise import noised


def stages(unet: UNet2DConditionModel) -> list[str]:
    """List the stages of `unet` from input to output: ``down_blocks.0`` .. ``mid_block`` .. ``up_blocks.3``."""
    down = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    mid = ["mid_block"] if unet.mid_block is not None else []
    return down + mid + [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]


def pairs(unet: UNet2DConditionModel) -> list[str]:
    """List every R-T pair (R alone where a stage has no attention) of the down and up stages: ``down_blocks.0.1``."""
    return [f"{s}.{k}" for s in stages(unet) if s != "mid_block" for k in range(len(unet.get_submodule(s).resnets))]


def removable(unet: UNet2DConditionModel) -> list[str]:
    """List what the variants of both papers remove: mid stage, innermost stages, and a pair of each stage.

    Thinning a stage by one pair takes the last pair of a down stage and the last but one of an up stage, whose last
    pair reads the skip connection of the stage's beginning (`kdcdiff.models.surgery`).
    """
    mid = ["mid_block"] if unet.mid_block is not None else []
    down = [f"down_blocks.{i}.{len(block.resnets) - 1}" for i, block in enumerate(unet.down_blocks)]
    up = [f"up_blocks.{i}.{len(block.resnets) - 2}" for i, block in enumerate(unet.up_blocks)]
    return [*mid, f"down_blocks.{len(down) - 1}", "up_blocks.0", *down, *up]


def _layers(unet: UNet2DConditionModel, part: str) -> list[nn.Module]:
    """Return the residual blocks and transformers that `part` consists of."""
    known = [*stages(unet), *pairs(unet)]
    check(part in known, "part", part, f"one of {', '.join(known)}")
    if part in stages(unet):
        stage = unet.get_submodule(part)
        return [*stage.resnets, *getattr(stage, "attentions", ())]
    name, _, k = part.rpartition(".")
    stage = unet.get_submodule(name)
    return [stage.resnets[int(k)], *list(getattr(stage, "attentions", ()))[int(k) : int(k) + 1]]


def _shortcut(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Hand on the layer's shortcut in place of its output: a forward hook."""
    hidden = inputs[0]
    if isinstance(layer, ResnetBlock2D):
        kept = hidden if layer.conv_shortcut is None else layer.conv_shortcut(hidden)
        return kept / layer.output_scale_factor
    return (hidden,) if isinstance(output, tuple) else type(output)(sample=hidden)


@contextmanager
def bypassed(unet: UNet2DConditionModel, *parts: str) -> Iterator[UNet2DConditionModel]:
    """While it lasts, `parts` of `unet` hand on what they get (their shortcuts); nothing else changes.

    Of the innermost down stage this is a reading of KDC-Diff, which removes DownBlock2D, keeps UpBlock2D and does not
    say what the latter then reads: here the bypassed block's input again, as its skip connections. No diffusers
    configuration expresses it; variant ``down-removed`` is the reading that one does.
    """
    with ExitStack() as stack:
        for layer in dict.fromkeys(layer for part in parts for layer in _layers(unet, part)):
            stack.callback(layer.register_forward_hook(_shortcut).remove)
        yield unet


def spread(scheduler: DDIMScheduler, count: int) -> list[int]:
    """Spread `count` time steps evenly over a schedule, low noise first."""
    check(count >= 1, "levels", count, "must be 1 or more")
    return [round((k + 0.5) * scheduler.config.num_train_timesteps / count) for k in range(count)]


@torch.no_grad()
def influence(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    prompts: Tensor,
    levels: Sequence[int],
    parts: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the relative change of the prediction when one part is bypassed: part -> (levels, N).

    ``|f_without(x_t, t, c) - f(x_t, t, c)| / |f(x_t, t, c)|`` with Euclidean norms over a picture's latent. `latents`
    (N, C, h, w) are clean and scaled, `prompts` (N, tokens, width) their embeddings, `levels` time steps; all parts
    see the same noise. The default parts are what the variants of both papers remove, `removable`.
    """
    check(len(latents) == len(prompts), "prompts", len(prompts), f"one for each of the {len(latents)} latents")
    clean, prompts = (x.to(unet.device, unet.dtype) for x in (latents, prompts))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    found: dict[str, list[Tensor]] = {part: [] for part in parts or removable(unet)}
    for level in levels:
        t = torch.full((len(clean),), level, device=clean.device)
        noisy = noised(scheduler, clean, noise, t)
        whole = unet(noisy, t, prompts, return_dict=False)[0].flatten(1)
        for part, changes in found.items():
            with bypassed(unet, part):
                without = unet(noisy, t, prompts, return_dict=False)[0].flatten(1)
            changes.append(((without - whole).norm(dim=1) / whole.norm(dim=1)).cpu())
    return {part: torch.stack(changes) for part, changes in found.items()}
