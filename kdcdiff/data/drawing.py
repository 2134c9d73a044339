"""What pictures are drawn with: polygons on a canvas, petals and curves, backgrounds, and how a picture is developed.

A subject is drawn in a frame of its own, [-1, 1] x [-1, 1] (y down), at four times the resolution, then averaged down.
The data sets that are drawn (`kdcdiff.data.flora`, `kdcdiff.data.garden`) share all of it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[float, float, float]
SUPERSAMPLE = 4
SIDE = 64  # of a picture in pixels, unless another is asked for

BACKGROUNDS: dict[str, tuple[Colour, Colour]] = {  # name -> colour at the top, colour at the bottom
    "meadow": ((0.42, 0.60, 0.25), (0.16, 0.36, 0.12)),
    "sky": ((0.46, 0.69, 0.93), (0.80, 0.89, 0.97)),
    "sand": ((0.87, 0.77, 0.58), (0.74, 0.61, 0.42)),
    "night": ((0.07, 0.08, 0.20), (0.17, 0.15, 0.33)),
    "stone": ((0.63, 0.63, 0.62), (0.42, 0.43, 0.45)),
}
LEAF: Colour = (0.20, 0.45, 0.17)
DARK: Colour = (0.08, 0.07, 0.08)
PALE: Colour = (0.97, 0.97, 0.95)


class Canvas:
    """Polygons in the subject's frame, drawn into an image and into the subject's mask."""

    def __init__(self, background: Image.Image, frame: np.ndarray, offset: np.ndarray, light: float) -> None:
        self.image, self.mask = background, Image.new("L", background.size, 0)
        self.frame, self.offset, self.light = frame, offset, light  # (2, 2), (2,): subject frame -> pixels
        self._paint, self._stencil = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def polygon(self, points: np.ndarray, colour: Colour, shade: float = 1.0) -> None:
        """Fill `points` (N, 2) with `colour` times `shade` under the scene's light."""
        pixels = [tuple(p) for p in (points @ self.frame.T + self.offset).tolist()]
        rgb = tuple(int(255 * min(1.0, max(0.0, c * shade * self.light))) for c in colour)
        self._paint.polygon(pixels, fill=rgb)
        self._stencil.polygon(pixels, fill=255)

    def disc(
        self,
        centre: tuple[float, float],
        radius: float,
        colour: Colour,
        shade: float = 1.0,
        squash: float = 1.0,
    ) -> None:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        self.polygon(np.stack([np.cos(angles) * radius, np.sin(angles) * radius * squash], 1) + centre, colour, shade)

    def stroke(self, points: np.ndarray, width: float, colour: Colour, shade: float = 1.0) -> None:
        """A band of `width` along the open line `points` (N, 2)."""
        along = np.gradient(points, axis=0)
        across = np.stack([-along[:, 1], along[:, 0]], 1) / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-9)
        self.polygon(np.concatenate([points + across * width / 2, (points - across * width / 2)[::-1]]), colour, shade)


# --- shapes in the subject's frame ---------------------------------------------------------------------------


def petal(length: float, width: float, tip: float, start: float = 0.0) -> np.ndarray:
    """A petal along +x, (N, 2). `tip` moves its widest place outwards and blunts it: 0.4 is pointed, 1.2 is round."""
    t = np.linspace(0, 1, 13)
    half = width / 2 * np.sin(np.pi * t ** (0.6 + tip)) ** (1.15 - 0.55 * min(tip, 1.2))
    x = start + t * (length - start)
    return np.concatenate([np.stack([x, half], 1), np.stack([x, -half], 1)[::-1]])


def rotate(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


def curve(*controls: tuple[float, float]) -> np.ndarray:
    """A Bezier curve through its first and last control point, (16, 2)."""
    points = np.repeat(np.array(controls, float)[None], 16, 0)
    t = np.linspace(0, 1, 16)[:, None, None]
    while points.shape[1] > 1:
        points = points[:, :-1] * (1 - t) + points[:, 1:] * t
    return points[:, 0]


# --- pictures ------------------------------------------------------------------------------------------------


def scene(rng: np.random.Generator, name: str, size: int, painted: int) -> Image.Image:
    """Paint a background, (size, size): a vertical gradient, soft blobs of nearby colour, blurred.

    It is soft, so it may be `painted` at a smaller side and enlarged.
    """
    top, bottom = (np.array(c) * rng.uniform(0.85, 1.15) for c in BACKGROUNDS[name])
    ramp = np.linspace(0, 1, 16)[:, None, None]
    small = top * (1 - ramp) + bottom * ramp + rng.normal(0, 0.03, (16, 16, 1)) + rng.normal(0, 0.008, (16, 16, 3))
    pixels = (small.clip(0, 1) * 255).astype(np.uint8)
    found = Image.fromarray(pixels).resize((painted, painted), Image.Resampling.BICUBIC)
    paint = ImageDraw.Draw(found, "RGBA")
    for _ in range(rng.integers(2, 6)):  # bokeh
        x, y, r = rng.uniform(0, painted), rng.uniform(0, painted), rng.uniform(0.04, 0.13) * painted
        tone = tuple(int(255 * v) for v in np.clip(top * rng.uniform(0.7, 1.4), 0, 1))
        paint.ellipse((x - r, y - r, x + r, y + r), fill=(*tone, int(rng.uniform(40, 110))))
    blurred = found.filter(ImageFilter.GaussianBlur(painted / 40))
    return blurred if painted == size else blurred.resize((size, size), Image.Resampling.BICUBIC)


def pose(rng: np.random.Generator, upright: bool) -> np.ndarray:
    """Draw how a subject stands, (2, 2): what is `upright` only leans, the rest turns; seen a little from the side."""
    lean = rng.uniform(-0.22, 0.22) if upright else rng.uniform(-0.6, 0.6)
    tilt = rng.uniform(0.78, 1.0)
    c, s = np.cos(lean), np.sin(lean)
    return np.array([[c, -s], [s, c]]) @ np.diag([1.0, tilt])


def tinted(rng: np.random.Generator, colour: Colour, spread: float) -> Colour:
    """Draw a colour near `colour`: normal deviations of `spread` in each channel."""
    red, green, blue = np.clip(np.array(colour) + rng.normal(0, spread, 3), 0, 1).tolist()
    return red, green, blue


def developed(rng: np.random.Generator, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Average a canvas down to a picture (H, W, 3) uint8, white-balanced and grainy, and its mask (H, W) in [0, 1]."""
    image = np.asarray(canvas.image.reduce(SUPERSAMPLE), np.float32) / 255
    image = (image * rng.uniform(0.95, 1.05, 3) + rng.normal(0, 0.008, image.shape)).clip(0, 1)
    mask = np.asarray(canvas.mask.reduce(SUPERSAMPLE), np.float32) / 255
    return (image * 255).round().astype(np.uint8), mask


def article(words: str) -> str:
    """Put the article that they want before `words`: ``an iris``."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
