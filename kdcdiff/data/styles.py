"""Styles: the same pictures as another fine-tune's training set would show them.

The papers' ten baselines are fine-tunes of one base model towards different looks. The book's small models in their
place are fine-tunes of its small base on its own pictures, redrawn in a look of the same kind; a role's name is the
baseline's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from kdcdiff.data.image_set import ImageSet
from kdcdiff.errors import check


def photograph(image: Image.Image) -> Image.Image:
    """Leave it as it is."""
    return image


def cel(image: Image.Image) -> Image.Image:
    """Give it animation's look: few flat, vivid colours between dark outlines."""
    flat = ImageEnhance.Color(ImageOps.posterize(image.filter(ImageFilter.MedianFilter(3)), 3)).enhance(1.6)
    lines = ImageOps.invert(image.convert("L").filter(ImageFilter.FIND_EDGES)).point(lambda v: 255 if v > 170 else 30)
    return ImageChops.multiply(ImageEnhance.Brightness(flat).enhance(1.2), lines.convert("RGB"))


def painting(image: Image.Image) -> Image.Image:
    """Give it a painter's look: broad strokes of one colour each, warm and rich in contrast."""
    strokes = ImageEnhance.Contrast(image.filter(ImageFilter.MedianFilter(5))).enhance(1.25)
    red, green, blue = ImageEnhance.Color(strokes).enhance(1.3).split()
    return Image.merge("RGB", (red.point(lambda v: min(255, 20 + v)), green, blue.point(lambda v: 0.75 * v)))


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {  # role -> look
    "realistic-vision-v51": photograph,
    "anything-v5": cel,
    "anything-midjourney": painting,
}


def styled(images: ImageSet, role: str) -> ImageSet:
    """Redraw `images` in the look of `role`; captions, labels and masks stay."""
    check(role in STYLES, "role", role, f"must be one of {', '.join(STYLES)}")

    def redraw(picture: Tensor) -> Tensor:
        drawn = STYLES[role](Image.fromarray(picture.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.asarray(drawn).copy()).permute(2, 0, 1)

    return replace(images, images=torch.stack([redraw(picture) for picture in images.images]))
