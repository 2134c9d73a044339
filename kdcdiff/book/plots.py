"""The figures' one style: pictures in grids, bars with intervals, curves, matrices."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.stats import rankdata
from seaborn.utils import relative_luminance
from torch import Tensor

from kdcdiff.metrics.estimate import Estimate, as_estimate

OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#5c5c5c")  # Okabe & Ito 2008
PALETTE = {"teacher": "#0072b2", "student": "#d55e00", "neutral": "#5c5c5c", "good": "#009e73"}
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LIGHT = 0.18  # relative luminance from which black on a colour has more contrast than white (WCAG 2)
HEAVY = 120_000  # characters of SVG beyond which a figure is a PNG after all
HATCHES = dict(zip(OKABE_ITO, ("", "///", "...", "xxx", "|||", "---", "\\\\\\", ""), strict=True))  # a bar's, by colour


def use_style() -> None:
    """Set the style of every figure of the book: colours that the colour-blind tell apart, lines told apart without."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9)
    lines = [LINES[place % len(LINES)] for place in range(len(OKABE_ITO))]
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=OKABE_ITO, linestyle=lines),
            "hatch.color": "white",
            "hatch.linewidth": 0.7,
            "image.interpolation": "nearest",
        }
    )
    _show_line_art_as_vector()


def _show_line_art_as_vector() -> None:
    """Have a notebook show a figure as SVG where that is right, and as PNG where it is not; nothing elsewhere."""
    shell = get_ipython()
    if shell is None:
        return
    plt.switch_backend(plt.get_backend())  # the notebook's own: it sets formats when it is loaded, so before us
    formatters = shell.display_formatter.formatters
    formatters["image/svg+xml"].for_type(Figure, as_svg)
    formatters["image/png"].for_type(Figure, lambda own: None if as_svg(own) else print_figure(own, base64=True))


def as_svg(figure: Figure) -> str | None:
    """Write a figure as SVG; None where it holds pictures, or so many lines that a PNG weighs less."""
    if any(axis.images for axis in figure.axes):
        return None
    with plt.rc_context({"svg.hashsalt": "kdcdiff"}):  # the same figure is the same file
        figure.savefig(file := io.BytesIO(), format="svg", metadata={"Date": None})
    text = file.getvalue().decode()
    return text if len(text) <= HEAVY else None


def look(place: int) -> dict[str, str]:
    """Give the colour and the marker of the group number `place`; they repeat together only after 56 groups."""
    turn = place // len(OKABE_ITO)
    return {"color": OKABE_ITO[place % len(OKABE_ITO)], "marker": MARKERS[(place + turn) % len(MARKERS)]}


def picture_grid(
    images: Tensor, columns: int, *, rows: Sequence[str] = (), titles: Sequence[object] = (), side: float = 0.85
) -> Figure:
    """Lay out images (N, 3, H, W) uint8, row after row; `rows` label the rows, `titles` the columns, wrapped."""
    wrapped = [textwrap.fill(str(title), max(8, int(14 * side))) for title in titles]
    lines = max((title.count("\n") + 1 for title in wrapped), default=0)
    count = (len(images) + columns - 1) // columns
    margin = 1.3 if rows else 0.1
    size = columns * side + margin, count * side + 0.1 + 0.15 * lines
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    height, width = (length + max(1, length // 16) for length in images.shape[-2:])  # with the white between pictures
    sheet = torch.full((count * columns, 3, height, width), 255, dtype=torch.uint8)
    sheet[: len(images), :, : images.shape[-2], : images.shape[-1]] = images
    axis.imshow(sheet.unflatten(0, (count, columns)).permute(0, 3, 1, 4, 2).reshape(count * height, -1, 3).numpy())
    axis.set_yticks([(k + 0.5) * height for k in range(len(rows))], rows)
    axis.set_xticks([(k + 0.5) * width for k in range(len(wrapped))], wrapped, fontsize="small")
    axis.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    axis.grid(False)
    sns.despine(ax=axis, left=True, bottom=True)
    return figure


def bars(
    values: Mapping[str, Estimate | float],
    *,
    unit: str,
    colours: Sequence[str] | None = None,
    limit: tuple[float, float] | None = None,
) -> Figure:
    """Draw horizontal bars with their intervals; an exact or unknown one has no whisker."""
    figure, axis = plt.subplots(figsize=(6.4, 0.38 * len(values) + 0.8))
    estimates = [as_estimate(value) for value in values.values()]
    reach = np.array([(e.value - e.low, e.high - e.value) for e in estimates]).reshape(-1, 2).T.clip(0)
    reach[:, (reach.sum(0) == 0) | ~np.isfinite(reach.sum(0))] = np.nan
    drawn = axis.barh(
        list(values),
        [e.value for e in estimates],
        xerr=reach,
        color=colours or PALETTE["teacher"],
        error_kw={"ecolor": "#333333", "capsize": 2},
        height=0.7,
    )
    for bar in drawn:
        bar.set_hatch(HATCHES.get(to_hex(bar.get_facecolor()), ""))
    axis.invert_yaxis()
    axis.set(xlabel=unit, xlim=limit)
    axis.grid(axis="y", visible=False)
    return figure


def curves(
    log: Sequence[Mapping[str, float]], names: Sequence[str], *, ylabel: str = "loss", logarithmic: bool = True
) -> Figure:
    """Draw terms of a training log against its steps."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2))
    for name, marker in zip(names, itertools.cycle(MARKERS)):
        steps, values = [r["step"] for r in log], [r[name] for r in log]
        axis.plot(steps, values, label=name, marker=marker, markersize=4, markevery=max(1, len(log) // 12))
    axis.set(xlabel="step", ylabel=ylabel, yscale="log" if logarithmic else "linear")
    axis.legend(ncols=len(names), fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def matrix(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    axis: Axes | None = None,
    limits: tuple[float | None, float | None] = (0, 1),
    form: str = ".2f",
) -> Axes:
    """Draw a heat map with its numbers in `form`; NaN stays blank; colours run over `limits`, None: the values' own."""
    if axis is None:
        _, axis = plt.subplots(figsize=(0.62 * len(columns) + 1.6, 0.42 * len(rows) + 1.0))
    sns.heatmap(
        values,
        mask=np.isnan(values),
        vmin=limits[0],
        vmax=limits[1],
        cmap="crest",
        annot=True,
        fmt=form,
        annot_kws={"fontsize": 7},
        cbar=False,
        xticklabels=columns,
        yticklabels=rows,
        ax=axis,
        linewidths=0.5,
    )
    axis.grid(False)
    axis.set_title(title, fontsize="medium")
    axis.tick_params(axis="x", rotation=45 if max(len(str(name)) for name in columns) > 5 else 0)
    axis.tick_params(axis="y", rotation=0)  # of a few rows, seaborn's own choice overprints
    _write_legibly(axis, ~np.isnan(values))
    return axis


def _write_legibly(axis: Axes, filled: np.ndarray) -> None:
    """Set each number of a heat map in black or white, whichever its cell's colour contrasts with more."""
    colours = np.asarray(axis.collections[0].get_facecolor())[filled.ravel()]
    for number, colour in zip(axis.texts, colours, strict=True):
        number.set_color("black" if relative_luminance(colour) > LIGHT else "white")


def gradient_of(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor) -> Callable[[Tensor], Tensor]:
    """The gradient of a loss of (output, target), each (N, 1, 1, 2), as a function of points (N, 2)."""

    def gradient(points: Tensor) -> Tensor:
        points = points.clone().requires_grad_()
        output, wanted = (p.reshape(-1, 1, 1, 2) for p in (points, target.expand_as(points)))
        return torch.autograd.grad(loss(output, wanted) * len(points), points)[0]

    return gradient


def gradient_fields(
    fields: Mapping[str, Callable[[Tensor], Tensor]], *, mark: tuple[float, float], span: float = 3
) -> Figure:
    """Draw where each loss pushes a point of the plane: title -> the gradient (N, 2) at points (N, 2).

    Arrows go downhill, and darker means steeper; `mark` is where one would want to arrive.
    """
    figure, axes = plt.subplots(1, len(fields), figsize=(2.9 * len(fields), 2.9), sharey=True, squeeze=False)
    line = torch.linspace(-span, span, 15)
    points = torch.stack([a.flatten() for a in torch.meshgrid(line, line, indexing="xy")], -1)
    for axis, (title, gradient) in zip(axes[0], fields.items(), strict=True):
        push = -gradient(points)
        size = push.norm(dim=-1)
        unit = push / size.clamp(min=1e-9)[:, None] * (size > 1e-6)[:, None]
        axis.quiver(
            *points.T, *unit.T, size, cmap="crest", clim=(0, float(size.max())), scale=22, width=0.006, pivot="mid"
        )
        axis.plot(*mark, marker="*", markersize=13, color=PALETTE["student"], markeredgecolor="white")
        axis.set(title=title, aspect="equal", xlabel="first value")
        axis.grid(False)
    axes[0, 0].set_ylabel("second value")
    return figure


def trade_off(
    points: Mapping[str, Mapping[str, float]],
    costs: Sequence[str],
    gains: Mapping[str, bool],
    *,
    groups: Mapping[str, str] | None = None,
    side: float = 2.7,
) -> Figure:
    """Draw every gain against every cost.

    `points` maps a model to its figures, `gains` a figure to whether more is better. The line is the Pareto front:
    models that no other one beats in both. `groups` maps a model to the name that it shares a colour under; by default
    each has its own.
    """
    shown = groups or {name: name for name in points}
    labels = list(dict.fromkeys(shown[name] for name in points))
    size = (side * len(costs) + 1.6, side * 0.72 * len(gains))
    figure, axes = plt.subplots(len(gains), len(costs), figsize=size, sharex="col", sharey="row", squeeze=False)
    looks = {label: look(place) for place, label in enumerate(labels)}
    for row, (gain, more) in zip(axes, gains.items(), strict=True):
        for axis, cost in zip(row, costs, strict=True):
            front: list[tuple[float, float]] = []
            for name in sorted(points, key=lambda n: (points[n][cost], -points[n][gain] if more else points[n][gain])):
                x, y = points[name][cost], points[name][gain]
                axis.scatter(x, y, **looks[shown[name]], s=38, zorder=3, label=shown[name])
                if not front or (y > front[-1][1] if more else y < front[-1][1]):
                    front.append((x, y))
            axis.plot(*zip(*front, strict=True), color=PALETTE["neutral"], lw=1, zorder=1)
        row[0].set_ylabel(f"{gain}\n({'more' if more else 'less'} is better)", fontsize="small")
    for axis, cost in zip(axes[-1], costs, strict=True):
        axis.set_xlabel(cost, fontsize="small")
    handles, names = axes[0, 0].get_legend_handles_labels()
    found = dict(zip(names, handles, strict=True))
    figure.legend([found[label] for label in labels], labels, loc="outside right center", fontsize="x-small")
    return figure


def rank_panels(panels: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[str]]], across: int) -> Figure:
    """Ranks (1: best) in one list against ranks in another: title -> (theirs, ours, kinds), each (rows,).

    Lower values are better; rows of one kind share a colour; `across` panels stand in a row.
    """
    groups = dict.fromkeys(kind for _, _, kinds in panels.values() for kind in kinds)
    looks = {kind: look(place) for place, kind in enumerate(groups)}
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(down, across, figsize=(3.1 * across, 3.0 * down), squeeze=False)
    for axis, (title, (theirs, ours, kinds)) in zip(axes.flat, panels.items(), strict=False):
        x, y = rankdata(theirs), rankdata(ours)
        for kind, own_look in looks.items():
            chosen = [k for k, own in enumerate(kinds) if own == kind]
            axis.scatter(x[chosen], y[chosen], **own_look, label=kind, s=30)
        axis.axline((1, 1), slope=1, color="#bbbbbb", lw=0.8, zorder=0)
        axis.set_title(title)
        axis.locator_params(integer=True, nbins=5)
    for axis in axes.flat[max(0, len(panels) - across) : len(panels)]:  # the lowest of each column
        axis.set_xlabel("rank in the paper")
    for axis in axes[:, 0]:
        axis.set_ylabel("rank here")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")
    return figure
