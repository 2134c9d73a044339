"""A start in which a U-Net's output hears its inner stages.

PyTorch draws a weight with variance 1 / (3 * fan-in). A residual network hardly minds, for its shortcuts are
identities; but on the way up of Stable Diffusion's U-Net none of them is. Every layer of an up stage reads a skip
connection beside its input, so its shortcut is a 1x1 convolution, which hands on about a sixth of its input's variance
and mixes as much of the skip connection into it, twelve times between the mid stage and the output; up- and
down-samplers are convolutions in the stream as well. So, it seems, the outer stages learn the task before the
inner ones are heard, and little is left for these to do: they fall asleep (`book/results/pilots.csv`).

`pass_on` draws the same network so that each layer hands on what it reads from below: the way through the mid stage is
as short as any.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


def _through(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    """Draw a matrix (outputs, inputs) that keeps the variance of white noise: the identity where it can be."""
    if outputs == inputs:
        return torch.eye(outputs)
    drawn = nn.init.orthogonal_(torch.empty(outputs, inputs), generator=generator)
    return drawn * max(1.0, outputs / inputs) ** 0.5  # rows of length 1


@torch.no_grad()
def pass_on(unet: UNet2DConditionModel, seed: int) -> None:
    """Set, in place, what lies beside the residual branches of an untrained `unet` so that it hands on what it gets.

    * The shortcut of an up stage's layer passes its input on (the identity; where channels change, orthogonal rows
      drawn from `seed`), and the skip connection as PyTorch drew it; that of a widening down layer its input.
    * An up-sampler's convolution is the identity; a down-sampler's adds up each window of 2x2 and halves it.

    The residual branches, and with them all that learns from data, stay as they were drawn.
    """
    generator = torch.Generator().manual_seed(seed)

    def unbiased(layer: nn.Conv2d) -> Tensor:
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer.weight

    def shortcut(layer: nn.Conv2d, inputs: int) -> None:
        unbiased(layer)[:, :inputs, 0, 0] = _through(layer.out_channels, inputs, generator)

    for stage in unet.down_blocks:
        for resnet in stage.resnets:
            if resnet.conv_shortcut is not None:
                shortcut(resnet.conv_shortcut, resnet.in_channels)
        for sampler in stage.downsamplers or ():
            weight = nn.init.zeros_(unbiased(sampler.conv))
            weight[:, :, 1:, 1:] = 0.5 * torch.eye(len(weight))[:, :, None, None]
    below = unet.config.block_out_channels[-1]
    for stage in unet.up_blocks:
        for resnet in stage.resnets:
            shortcut(resnet.conv_shortcut, below)  # the hidden input comes first, the skip connection after it
            below = resnet.out_channels
        for sampler in stage.upsamplers or ():
            nn.init.dirac_(unbiased(sampler.conv))
