"""Multiply-accumulates of one module call, in four conventions, on the meta device: shapes only, no weights.

A "GMac" is not one quantity. What a tool leaves out decides what it prints:

========  =================================================================================================
fvcore    convolutions, linear layers; 5 operations an element for an affine group or layer norm; 1 for each
          up-sampled element. `scaled_dot_product_attention` is skipped. (fvcore 0.1.5, `nn/flop_count.py`)
thop      convolutions, linear layers; 4 operations an element for an affine layer norm; group norms and
          attention products are skipped. (thop 0.1.1, `profile.py`)
hooks     convolutions and linear layers with their biases, nothing else: what counters see that hang hooks
          on layers, early ptflops among them.
all       every matrix product, attention's too: torch's `FlopCounterMode` divided by two.
========  =================================================================================================

Exactness is tested against the real libraries on a small U-Net.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
from kdcdiff.errors import check

CONVENTIONS = ("fvcore", "thop", "hooks", "all")


@dataclass(frozen=True)
class Count:
    """Parameters and multiply-accumulates of a network or of a part of one; counts add."""

    parameters: int = 0
    fvcore: int = 0
    thop: int = 0
    hooks: int = 0
    all: int = 0

    def __add__(self, other: Count) -> Count:
        names = ("parameters", *CONVENTIONS)
        return Count(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def macs(self, convention: str) -> int:
        """Multiply-accumulates in one of `CONVENTIONS`."""

        check(convention in CONVENTIONS, "convention", convention, f"one of {', '.join(CONVENTIONS)}")
        return getattr(self, convention)


def parameters(module: nn.Module) -> int:
    """Number of trainable and frozen scalars."""
    return sum(p.numel() for p in module.parameters())


def count(module: nn.Module, *inputs: Any, **keywords: Any) -> Count:
    """Count one call ``module(*inputs, **keywords)``; everything should live on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    seen = dict.fromkeys(CONVENTIONS, 0)
    handles = [m.register_forward_hook(_hook(seen)) for m in module.modules() if _hook_needed(m)]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*inputs, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    seen["all"] = counter.get_total_flops() // 2
    return Count(parameters=parameters(module), **seen)


def count_macs(module: nn.Module, convention: str, *inputs: Any, **keywords: Any) -> int:
    """Multiply-accumulates of one call of `module` in one convention."""
    return count(module, *inputs, **keywords).macs(convention)


def _hook_needed(module: nn.Module) -> bool:
    return _role(module) != ""


def _role(module: nn.Module) -> str:
    """What a leaf counts as. Up-sampling is a function call inside diffusers' `Upsample2D`."""
    from torch import nn

    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.GroupNorm):
        return "group norm"
    if isinstance(module, nn.LayerNorm):
        return "layer norm"
    return "upsample" if type(module).__name__ == "Upsample2D" else ""


def _hook(seen: dict[str, int]) -> Any:
    """A forward hook that adds a leaf's operations to `seen` in every convention but `all`."""

    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        role, size = _role(module), inputs[0].numel()
        if role in ("conv", "linear"):
            per_output = module.in_features if role == "linear" else module.weight[0].numel()
            products = output.numel() * per_output
            seen["fvcore"] += products
            seen["thop"] += products
            seen["hooks"] += products + (output.numel() if module.bias is not None else 0)
        elif role == "upsample":
            seen["fvcore"] += 4 * size  # nearest neighbour, twice the width and height
        else:
            affine = module.weight is not None
            seen["fvcore"] += size * (5 if affine else 4)
            if role == "layer norm":
                seen["thop"] += size * (4 if affine else 2)

    return hook
