"""What equation (3) compares before training: how far apart each stage is, and which stages a comparison reaches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from kdcdiff.data.latents import DenoisingBatch
from kdcdiff.models.feature_hooks import Taps
from kdcdiff.training.losses import feature_loss


def stage_distances(
    student: UNet2DConditionModel, teacher: UNet2DConditionModel, data: DenoisingBatch
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Each shared stage's squared distance (with its graph, for `gradient_reach`), and the teacher's mean square."""
    data = data.to(student.device)
    with Taps(student, teacher) as taps:
        with torch.no_grad():
            teacher(data.noisy, data.timestep, data.prompt)
        student(data.noisy, data.timestep, data.prompt)
        mine, theirs = taps.pop()
    distances = {role: feature_loss([s], [t]) for role, s, t in zip(taps.roles, mine, theirs, strict=True)}
    return distances, {role: t.square().mean().item() for role, t in zip(taps.roles, theirs, strict=True)}


def gradient_reach(student: UNet2DConditionModel, losses: Mapping[str, Tensor]) -> tuple[np.ndarray, list[str]]:
    """Norms (losses, stages) of the gradient that each loss sends to each stage of `student`, and the stages' names.

    NaN where a loss reaches no parameter of a stage.
    """
    depth = len(student.up_blocks)
    stages = {f"down.{i}": block for i, block in enumerate(student.down_blocks)}
    stages |= {} if student.mid_block is None else {"mid": student.mid_block}
    stages |= {f"up.{depth - 1 - i}": block for i, block in enumerate(student.up_blocks)}
    parameters = list(student.parameters())
    owner = {id(p): stage for stage, block in stages.items() for p in block.parameters()}
    reach = np.full((len(losses), len(stages)), np.nan)
    for row, loss in zip(reach, losses.values(), strict=True):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for place, stage in enumerate(stages):
            own = [g for p, g in zip(parameters, found, strict=True) if g is not None and owner.get(id(p)) == stage]
            if own:
                row[place] = torch.nn.utils.get_total_norm(own).item()
    return reach, list(stages)
