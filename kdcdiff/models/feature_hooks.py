"""Feature hooks: what the stages that two U-Nets share compute, for equation (3), without touching the networks.

Stages are matched by role: side (down, mid, up) and depth, counted from the outside. The described student has three
stages where its teacher has four: its ``up.2`` (its first up stage) is the teacher's second, and its middle works at a
resolution where the teacher's does not, so that one has no partner. A feature is taken after a stage's last R-T pair
and before its resampler, the one place where both networks have the same resolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from kdcdiff.errors import check

if TYPE_CHECKING:  # see kdcdiff.models.surgery
    from diffusers import UNet2DConditionModel


def stage_ends(unet: UNet2DConditionModel) -> dict[str, tuple[nn.Module, int]]:
    """Map each role, ``down.0`` ... ``mid.4`` ... ``up.0``, to the module whose output ends it, and its channels."""
    depth = len(unet.down_blocks)
    widths = unet.config.block_out_channels
    blocks = {f"down.{i}": (block, widths[i]) for i, block in enumerate(unet.down_blocks)}
    if unet.mid_block is not None:
        blocks[f"mid.{depth}"] = (unet.mid_block, widths[-1])
    blocks |= {f"up.{depth - 1 - i}": (block, widths[depth - 1 - i]) for i, block in enumerate(unet.up_blocks)}
    ends = {}
    for role, (block, width) in blocks.items():
        if len(block.resnets):  # a bypassed stage computes nothing
            attended = len(getattr(block, "attentions", ())) and not role.startswith("mid")
            ends[role] = (block.attentions[-1] if attended else block.resnets[-1], width)
    return ends


def shared_roles(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> list[str]:
    """List the roles that both networks have. Raises `UserError` where none is shared or the widths differ."""
    ours, theirs = stage_ends(student), stage_ends(teacher)
    roles = [role for role in theirs if role in ours]
    check(bool(roles), "features", roles, "the two networks share no stage")
    for role in roles:
        width, wanted = ours[role][1], theirs[role][1]
        check(width == wanted, f"channels of {role}", width, f"must be the teacher's {wanted}")
    return roles


class Tap:
    """Collects one network's features by forward hooks on the bare module, one forward at a time."""

    def __init__(self, unet: UNet2DConditionModel, roles: list[str]) -> None:
        ends = stage_ends(unet)
        self.roles, self._armed = roles, False
        self._seen: dict[str, Tensor] = {}
        self._handles = [unet.register_forward_pre_hook(self._arm)]
        self._handles += [ends[role][0].register_forward_hook(self._keep(role)) for role in roles]

    def _arm(self, module: nn.Module, inputs: Any) -> None:
        self._seen, self._armed = {}, True

    def _keep(self, role: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._armed:  # checkpointing runs the stage again during backward, after `pop`: not a new feature
                self._seen[role] = output if isinstance(output, Tensor) else output[0]

        return hook

    def pop(self) -> list[Tensor]:
        """Hand out the features of the last forward, in the order of the roles."""
        self._armed, seen, self._seen = False, self._seen, {}
        return [seen[role] for role in self.roles]

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


class Taps:
    """The shared stages of a student and its teacher; a context manager, so the hooks are always removed.

    Enter before anything wraps or compiles the networks. Raises `UserError` as `shared_roles` does.
    """

    def __init__(self, student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> None:
        self.networks = student, teacher
        self.roles = shared_roles(student, teacher)

    def __enter__(self) -> Taps:
        self.student, self.teacher = (Tap(unet, self.roles) for unet in self.networks)
        return self

    def pop(self) -> tuple[list[Tensor], list[Tensor]]:
        """Hand out (student's, teacher's) features of the last forwards, role by role, each (N, C, h, w)."""
        return self.student.pop(), self.teacher.pop()

    def __exit__(self, *error: object) -> None:
        self.student.remove()
        self.teacher.remove()
