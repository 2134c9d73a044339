"""Pictures along a slider, for the rendered page: one sheet of pictures, of which the slider shows a row.

    slider({"0 steps": {"student": pictures}, "40 steps": {"student": later}}, ["daisy", "rose"], along="training")

The page needs no network and no library, a keyboard moves the slider, and with scripts off the last row stands there.
Its style and its script are `slider.css` and `slider.js`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from PIL import Image
from torch import Tensor

from kdcdiff.errors import check

QUALITY = 82  # of the sheet as JPEG: at 64 pixels a picture its faults are not to be seen


@dataclass(frozen=True)
class Slider:
    """Frames of pictures (frames, groups, sides, 3, H, W) uint8: a frame for each of `labels`, a row of `groups`.

    A group is a class, say, and its `sides` are the models whose pictures stand beside each other.
    """

    frames: Tensor
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    sides: tuple[str, ...]
    along: str  # what the slider moves along

    def __repr__(self) -> str:
        shown = f"{len(self.groups)} groups of {', '.join(self.sides)}"
        return f"Pictures along {self.along}: {', '.join(self.labels)}; {shown}"

    def _repr_html_(self) -> str:
        across, last = len(self.groups) * len(self.sides), len(self.labels) - 1
        cells = "".join(self._group(place, name) for place, name in enumerate(self.groups))
        labels = "|".join(html.escape(label.replace("|", "/")) for label in self.labels)
        style = f"--across: {across}; --frames: {len(self.labels)}; --frame: {last}"
        return (
            f'<div class="kdcs" style="{style}" data-labels="{labels}">'
            f"<style>\n{_file('slider.css')}</style>"
            f"<label>{html.escape(self.along)} "
            f'<input type="range" min="0" max="{last}" value="{last}" aria-valuetext="{html.escape(self.labels[-1])}">'
            f"</label><output>{html.escape(self.labels[-1])}</output>"
            f'<div class="kdcs-sheet" style="--sheet: url({self._sheet()})">{cells}</div>'
            f"<script>\n{_file('slider.js')}</script></div>"
        )

    def _group(self, place: int, name: str) -> str:
        """Write a group's pictures, beside each other, with their names below."""
        pictures = "".join(
            f'<span><i role="img" aria-label="{html.escape(f"{name}, {side}")}" '
            f'style="--at: {place * len(self.sides) + k}"></i><small>{html.escape(side)}</small></span>'
            for k, side in enumerate(self.sides)
        )
        return f"<figure>{pictures}<figcaption>{html.escape(name)}</figcaption></figure>"

    def _sheet(self) -> str:
        """Lay all frames out, one below the other, as the address of one JPEG."""
        frames, groups, sides, _, height, width = self.frames.shape
        sheet = self.frames.permute(0, 4, 1, 2, 5, 3).reshape(frames * height, groups * sides * width, 3)
        Image.fromarray(sheet.contiguous().numpy()).save(file := io.BytesIO(), "JPEG", quality=QUALITY, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def slider(frames: Mapping[str, Mapping[str, Tensor]], groups: Sequence[str], *, along: str) -> Slider:
    """Lay out `frames`: label -> side -> pictures (groups, 3, H, W) uint8; every frame has the same sides.

    UserError: no frame, another number of pictures than groups, or frames of different sides.
    """
    check(len(frames) > 0, "frames", "none", "must hold at least one frame")
    sides = tuple(next(iter(frames.values())))
    for label, own in frames.items():
        check(tuple(own) == sides, label, tuple(own), f"must have the sides {', '.join(sides)}")
        for side, pictures in own.items():
            check(len(pictures) == len(groups), f"{label}, {side}", len(pictures), f"must be {len(groups)} pictures")
    stacked = torch.stack([torch.stack(list(own.values()), 1) for own in frames.values()])
    return Slider(stacked, tuple(frames), tuple(groups), sides, along)


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
