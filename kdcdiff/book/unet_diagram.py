"""The U-Net drawn stage by stage with what a variant removes, in the manner of KDC-Diff's Figure 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from kdcdiff.models import surgery
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.variants import Variant, variant

KINDS = {"resnets": "R", "attentions": "T", "downsamplers": "↓", "upsamplers": "↑"}
COLOURS = {"R": "#a9c6de", "T": "#f2c879", "↓": "#c9c9c9", "↑": "#c9c9c9"}
REMOVED = "#c1121f"


def layers_of(names: Iterable[str], stage: str) -> list[str]:
    """Pick a stage's layers, in the order in which they run: R0 T0 R1 T1 ..., then the sampler."""

    def turn(name: str) -> tuple[bool, int, bool]:
        kind, index = name.removeprefix(stage + ".").split(".")
        return kind in ("downsamplers", "upsamplers"), int(index), kind == "attentions"

    return sorted((name for name in names if name.startswith(stage + ".")), key=turn)


def letter(name: str) -> str:
    """Shorten a layer to its kind: R, T, ↓ or ↑."""
    return KINDS[name.split(".")[-2]]


def stage_layers(kept: Mapping[str, bool], stage: str) -> list[tuple[str, bool]]:
    """List the layers of a stage in the order in which they run, each as (its letter, whether it stays)."""
    return [(letter(name), kept[name]) for name in layers_of(kept, stage)]


def unet(what: str | Variant, config: Mapping[str, Any] | None = None, axis: Axes | None = None) -> Figure:
    """Draw a teacher's U-Net (Stable Diffusion 1.x's unless given) with what `what` removes outlined in red."""
    config = CONFIGS["sd-1"] if config is None else config
    cut, widths = variant(what), surgery.with_defaults(config)["block_out_channels"]
    kept = surgery.layers_kept(config, cut)
    n = len(widths)
    if axis is None:
        _, axis = plt.subplots(figsize=(7.6, 0.62 * (n + 1) + 0.5))
    for s, width in enumerate(widths):
        y = float(n - s)
        _row(axis, -0.45, y, stage_layers(kept, f"down_blocks.{s}"), leftwards=True)
        _row(axis, 0.45, y, stage_layers(kept, f"up_blocks.{n - 1 - s}"))
        axis.plot([-0.38, 0.38], [y, y], color="#888888", lw=0.8, ls=":", zorder=0)  # the skip connections
        axis.text(-6.4, y, f"{width} channels", ha="left", va="center", fontsize=8)
    middle = stage_layers(kept, "mid_block")
    _row(axis, -0.5 * 0.62 * len(middle), 0.0, middle)
    axis.text(-6.4, 0.0, "mid stage", ha="left", va="center", fontsize=8)
    axis.text(-2.6, n + 0.62, "down", ha="center", fontsize=8)
    axis.text(3.0, n + 0.62, "up", ha="center", fontsize=8)
    axis.set(xlim=(-6.5, 5.6), ylim=(-0.6, n + 1.0))
    axis.set_title(f"{cut.name}: without {cut.description}" if cut.description != "nothing" else cut.name, fontsize=9)
    axis.axis("off")
    return axis.figure  # type: ignore[return-value]


def _row(axis: Axes, x: float, y: float, layers: Sequence[tuple[str, bool]], leftwards: bool = False) -> None:
    """Draw boxes from `x` on; `leftwards` lays the same order so that it ends at `x`."""
    step, size = 0.62, 0.5
    start = x - step * len(layers) if leftwards else x
    for i, (kind, stays) in enumerate(layers):
        box = FancyBboxPatch(
            (start + i * step + 0.06, y - size / 2), size, size, boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=COLOURS[kind] if stays else "none", edgecolor="#555555" if stays else REMOVED,
            linewidth=0.8 if stays else 1.4, linestyle="-" if stays else (0, (2, 1.5)),
        )  # fmt: skip
        axis.add_patch(box)
        colour = "#222222" if stays else REMOVED
        axis.text(start + i * step + 0.06 + size / 2, y, kind, ha="center", va="center", fontsize=8, color=colour)
