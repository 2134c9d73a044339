"""Training a U-Net through its bottleneck, so that its inner stages have work to do.

Trained plainly, the outer stages of a small U-Net learn everything: they see the prompt, and the skip connections carry
the picture around the inner stages, whose influence falls to a thousandth (`book/results/pilots.csv`). Two things are
therefore withheld from a share of the training samples:

* the *prompt*, from every stage but the middle one: what to draw has to come from below, as in large models, whose
  bottleneck holds the meaning (Kwon et al. 2023, "h-space");
* the *skip connections* of an up stage, more often the noisier the sample and the further in the stage: the plan of the
  whole has to come from below where there is nothing to copy yet; the outermost stage always has its own.

Nothing of it stays in the network: what is trained is a plain diffusers U-Net that always sees both. It does not last:
the inner stages fall asleep again as training goes on, and so they do where both are withheld for good (same table).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[Any, dict[str, Any]]]


@dataclass(frozen=True)
class Withholding:
    """How often something is withheld in training; zeros: never."""

    prompt: float = 0.0  # share of samples whose prompt only the mid stage sees
    skips: float = 0.0  # the same for the innermost up stage's skip connections at the highest noise

    def draw(self, timestep: Tensor, levels: int, stages: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw what each sample goes without: its outer prompt, (N,) bool; each up stage's skips, (N, stages) bool.

        `levels` is the number of training time steps, `stages` that of up stages. The share of skips falls in
        proportion to the time step, and linearly to none at the outermost stage.
        """
        chance = torch.rand(len(timestep), 1 + stages, generator=generator).to(timestep.device)
        inward = torch.linspace(1, 0, stages, device=timestep.device)
        return chance[:, 0] < self.prompt, chance[:, 1:] < self.skips * inward * (timestep[:, None] / levels)


@contextmanager
def withheld(unet: UNet2DConditionModel, empty: Tensor, prompt: Tensor, skips: Tensor) -> Iterator[None]:
    """Withhold from `unet`, while it lasts, what `Withholding.draw` says.

    The samples of `prompt` (N,) show the outer stages the `empty` prompt (tokens, width); up stage k gets zeros for the
    skip connections of the samples of `skips[:, k]` (N, up stages).
    """

    def hide_prompt(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        said = named["encoder_hidden_states"]
        hidden = prompt.to(said.device)[:, None, None]
        return args, named | {"encoder_hidden_states": torch.where(hidden, empty.to(said), said)}

    def hide_skips(k: int) -> Hook:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            states = named["res_hidden_states_tuple"]
            kept = (~skips[:, k]).to(states[0])[:, None, None, None]
            return args, named | {"res_hidden_states_tuple": tuple(state * kept for state in states)}

        return hook

    with ExitStack() as stack:
        for stage in (*unet.down_blocks, *unet.up_blocks):
            if getattr(stage, "has_cross_attention", False):
                stack.callback(stage.register_forward_pre_hook(hide_prompt, with_kwargs=True).remove)
        for k, stage in enumerate(unet.up_blocks):
            stack.callback(stage.register_forward_pre_hook(hide_skips(k), with_kwargs=True).remove)
        yield


class _Scaled(nn.Module):
    """A parametrization: the weight is the trained parameter times fixed `factors`, which broadcast over it."""

    factors: Tensor

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factors


def _tilts(unet: UNet2DConditionModel, gain: float) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield each layer that `tilt` scales, with its factors (over input channels, or one for all)."""
    inner = len(unet.down_blocks) - 1
    for u, stage in enumerate(unet.up_blocks):
        below = [unet.config.block_out_channels[inner], *(s.resnets[-1].out_channels for s in unet.up_blocks)][u]
        for resnet in stage.resnets:
            factors = torch.full((resnet.in_channels,), 1 / gain)
            factors[:below] = gain  # hidden input comes first, the skip connection after it
            below = resnet.out_channels
            for layer in filter(None, (resnet.conv1, resnet.conv_shortcut)):
                yield layer, factors[None, :, None, None]
    for stage in (unet.down_blocks[inner], unet.mid_block, unet.up_blocks[0]):
        if stage is not None:
            yield from ((resnet.conv2, torch.tensor(gain)) for resnet in stage.resnets)
            yield from ((layer.proj_out, torch.tensor(gain)) for layer in getattr(stage, "attentions", ()))


def tilt(unet: UNet2DConditionModel, gain: float) -> None:
    """Tilt `unet` towards its inside, until `level` folds it: weights are trained as factors of fixed gains.

    In every layer of an up stage the weights that read from below are `gain` times the trained parameter, those that
    read a skip connection a `gain`-th of it; what the innermost stages and the middle add is `gain` times as large.
    That holds at the start, and for the learning rate throughout.
    """
    for layer, factors in list(_tilts(unet, gain)):
        scaled = _Scaled(factors.to(unet.device))
        parametrize.register_parametrization(layer, "weight", scaled, unsafe=True)


def level(unet: UNet2DConditionModel) -> None:
    """Fold the gains of `tilt` into the weights: a plain diffusers U-Net that predicts the same."""
    for layer in unet.modules():
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
