"""Feature taps: what the stages that two U-Nets share compute, for equation (3), without touching the networks.

Stages are matched by role: side (down, mid, up) and depth, counted from the outside. The described student has three
stages where its teacher has four: its ``up.2`` (its first up stage) is the teacher's second, and its middle works at a
resolution where the teacher's does not, so that one has no partner. A feature is taken after a stage's last R-T pair
and before its resampler, the one place where both networks have the same resolution.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from kdcdiff.errors import check


def stage_ends(unet: UNet2DConditionModel) -> dict[str, tuple[nn.Module, int]]:
    """Role -> (the module whose output ends the stage, its channels): ``down.0`` ... ``mid.4`` ... ``up.0``."""
    depth = len(unet.down_blocks)
    widths = unet.config.block_out_channels
    blocks = {f"down.{i}": (block, widths[i]) for i, block in enumerate(unet.down_blocks)}
    if unet.mid_block is not None:
        blocks[f"mid.{depth}"] = (unet.mid_block, widths[-1])
    blocks |= {f"up.{depth - 1 - i}": (block, widths[depth - 1 - i]) for i, block in enumerate(unet.up_blocks)}
    ends = {}
    for role, (block, width) in blocks.items():
        if not len(block.resnets):
            continue  # a bypassed stage computes nothing
        attended = len(getattr(block, "attentions", ())) and not role.startswith("mid")
        ends[role] = (block.attentions[-1] if attended else block.resnets[-1], width)
    return ends


def shared_roles(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> list[str]:
    """The roles that both networks have. Raises `UserError` where none is shared or the widths differ."""
    mine, theirs = stage_ends(student), stage_ends(teacher)
    roles = [role for role in theirs if role in mine]
    check(bool(roles), "features", roles, "the two networks share no stage")
    for role in roles:
        check(
            mine[role][1] == theirs[role][1],
            f"channels of {role}",
            mine[role][1],
            f"must be the teacher's {theirs[role][1]}",
        )
    return roles


class Tap:
    """Collects one network's features by forward hooks on the bare module, one forward at a time."""

    def __init__(self, unet: UNet2DConditionModel, roles: list[str]) -> None:
        ends = stage_ends(unet)
        self.roles, self._armed = roles, False
        self._seen: dict[str, Tensor] = {}
        self._handles = [unet.register_forward_pre_hook(self._arm)]
        for role in roles:
            self._handles.append(ends[role][0].register_forward_hook(self._keep(role)))

    def _arm(self, module: nn.Module, inputs: Any) -> None:
        self._seen, self._armed = {}, True

    def _keep(self, role: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._armed:  # checkpointing runs the stage again during backward, after `pop`: not a new feature
                self._seen[role] = output if isinstance(output, Tensor) else output[0]

        return hook

    def pop(self) -> list[Tensor]:
        """The features of the last forward, in the order of the roles."""
        self._armed, seen, self._seen = False, self._seen, {}
        return [seen[role] for role in self.roles]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class Taps:
    """The shared stages of a student and its teacher; a context manager, so the hooks are always removed.

    Enter before anything wraps or compiles the networks.
    """

    def __init__(self, student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> None:
        self.student_unet, self.teacher_unet = student, teacher
        self.roles = shared_roles(student, teacher)

    def __enter__(self) -> Taps:
        self.student, self.teacher = Tap(self.student_unet, self.roles), Tap(self.teacher_unet, self.roles)
        return self

    def pop(self) -> tuple[list[Tensor], list[Tensor]]:
        """(student's, teacher's) features of the last forwards, role by role, each (N, C, h, w)."""
        return self.student.pop(), self.teacher.pop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.student.remove()
        self.teacher.remove()
