"""Multiply-accumulates of one module call, in four conventions, on the meta device: shapes only, no weights.

A "GMac" is not one quantity: what a tool leaves out decides what it prints (`CONVENTIONS`). Tests hold each
convention to the library that it is named after, on a small U-Net, to the integer.

Everything is counted on the meta device, which is fast and needs no memory, and is the only right place: on a CPU
torch's `FlopCounterMode` (2.13) sees nothing of fused attention (pytorch issue 195460), so ``all`` would silently
lack the attention products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

CONVENTIONS = {
    # fvcore 0.1.5, nn/flop_count.py: 5 operations an element of an affine group or layer norm, 1 an up-sampled element
    "fvcore": "convolutions, linear layers, norms, up-sampling; no attention products (KDC-Diff's column)",
    # thop 0.1.1, profile.py: 4 operations an element of an affine layer norm
    "thop": "convolutions, linear layers, layer norms; no attention products (BK-SDM's column)",
    # what counters see that hang hooks on layers, early ptflops among them
    "hooks": "convolutions and linear layers with their biases, nothing else",
    # torch's FlopCounterMode, divided by two
    "all": "every matrix product, attention's too",
}


@dataclass(frozen=True)
class Count:
    """Parameters of a network or of a part of one, and one call's multiply-accumulates by convention; counts add."""

    parameters: int = 0
    macs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CONVENTIONS, 0))

    def __add__(self, other: Count) -> Count:
        return Count(self.parameters + other.parameters, {c: self.macs[c] + other.macs[c] for c in CONVENTIONS})


def count(module: nn.Module, *inputs: Any, **keywords: Any) -> Count:
    """Count one call ``module(*inputs, **keywords)``; the module and its inputs are on the meta device."""
    return count_parts(module, {"": module}, *inputs, **keywords)[""]


def count_parts(module: nn.Module, parts: Mapping[str, nn.Module], *inputs: Any, **keywords: Any) -> dict[str, Count]:
    """Count what each of `parts` does in one call ``module(*inputs, **keywords)``, by name; all are on the meta device.

    One call serves all of them. A part that the call does not reach costs nothing.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    assert all(p.is_meta for p in module.parameters()), "anywhere else attention is not counted"
    macs = {name: dict.fromkeys(CONVENTIONS, 0) for name in parts}
    with torch.no_grad(), ExitStack() as hooks, FlopCounterMode(display=False) as counter:
        for name, part in parts.items():
            before, after = _around(macs[name], counter.get_total_flops)
            hooks.callback(part.register_forward_pre_hook(before).remove)
            hooks.callback(part.register_forward_hook(after).remove)
            for m in part.modules():
                if _role(m):
                    hooks.callback(m.register_forward_hook(_hook(macs[name])).remove)
        module(*inputs, **keywords)
    for own in macs.values():
        own["all"] //= 2
    return {name: Count(sum(p.numel() for p in part.parameters()), macs[name]) for name, part in parts.items()}


def _around(macs: dict[str, int], flops: Callable[[], int]) -> tuple[Callable[..., None], Callable[..., None]]:
    """Make a hook before and one after a part, which together add the `flops` in between to ``all``."""

    def before(*_: Any) -> None:
        macs["all"] -= flops()

    def after(*_: Any) -> None:
        macs["all"] += flops()

    return before, after


def _role(module: nn.Module) -> str:
    """Say what a leaf counts as; up-sampling is a function call inside diffusers' `Upsample2D`."""
    from torch import nn

    kinds = {
        nn.modules.conv._ConvNd: "conv",
        nn.Linear: "linear",
        nn.GroupNorm: "group norm",
        nn.LayerNorm: "layer norm",
    }
    named = "upsample" if type(module).__name__ == "Upsample2D" else ""
    return next((role for kind, role in kinds.items() if isinstance(module, kind)), named)


def _hook(macs: dict[str, int]) -> Callable[[Any, tuple[Any, ...], Any], None]:
    """Make a forward hook that adds a leaf's operations to `macs` in every convention but ``all``."""

    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        role, size = _role(module), inputs[0].numel()
        if role in ("conv", "linear"):
            per_output = module.in_features if role == "linear" else module.weight[0].numel()
            products = output.numel() * per_output
            macs["fvcore"] += products
            macs["thop"] += products
            macs["hooks"] += products + (output.numel() if module.bias is not None else 0)
        elif role == "upsample":
            macs["fvcore"] += 4 * size  # nearest neighbour, twice the width and height
        else:
            affine = module.weight is not None
            macs["fvcore"] += size * (5 if affine else 4)
            if role == "layer norm":
                macs["thop"] += size * (4 if affine else 2)

    return hook
