"""`flora`: the embedded data set, flowers and butterflies drawn from a seed.

Twelve *base* classes train the shipped pipeline; eight *novel* ones are kept for class-by-class training, so no
generator weight has ever seen them. A picture is a pure function of (seed, class, index): its pose, size, light,
background, colour and petal count vary, its caption names them, and its mask says exactly where the subject is.

Everything is drawn as polygons in a subject frame of [-1, 1] x [-1, 1] (y down) at four times the resolution, then
averaged down. There is no photograph in it and nothing to download.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kdcdiff.errors import check

Colour = tuple[float, float, float]
SUPERSAMPLE = 4
SIDE = 64  # of a picture in pixels, unless another is asked for

COLOURS: dict[str, Colour] = {
    "white": (0.96, 0.95, 0.93),
    "yellow": (0.98, 0.84, 0.15),
    "orange": (0.97, 0.53, 0.11),
    "red": (0.85, 0.11, 0.14),
    "pink": (0.96, 0.55, 0.71),
    "purple": (0.55, 0.22, 0.66),
    "violet": (0.42, 0.31, 0.80),
    "blue": (0.16, 0.38, 0.88),
    "cream": (0.97, 0.91, 0.70),
    "green": (0.55, 0.80, 0.42),
    "brown": (0.50, 0.27, 0.13),
    "black": (0.09, 0.08, 0.10),
}

BACKGROUNDS: dict[str, tuple[Colour, Colour]] = {  # name -> colour at the top, colour at the bottom
    "meadow": ((0.42, 0.60, 0.25), (0.16, 0.36, 0.12)),
    "sky": ((0.46, 0.69, 0.93), (0.80, 0.89, 0.97)),
    "sand": ((0.87, 0.77, 0.58), (0.74, 0.61, 0.42)),
    "night": ((0.07, 0.08, 0.20), (0.17, 0.15, 0.33)),
    "stone": ((0.63, 0.63, 0.62), (0.42, 0.43, 0.45)),
}
LEAF: Colour = (0.20, 0.45, 0.17)
DARK: Colour = (0.08, 0.07, 0.08)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


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


# --- flowers -------------------------------------------------------------------------------------------------


def stem(c: Canvas, rng: np.random.Generator, top: float = 0.0, leaves: int = 2) -> None:
    bend = rng.uniform(-0.3, 0.3)
    line = curve((0, top), (bend, 0.7), (bend * 0.3, 1.6))
    c.stroke(line, 0.09, LEAF, 0.9)
    for i in range(leaves):
        side = 1 if i % 2 else -1
        leaf = rotate(petal(0.62, 0.24, 0.5), -np.pi / 2 + side * rng.uniform(0.7, 1.2))
        c.polygon(leaf + line[9 + 2 * i], LEAF, rng.uniform(0.9, 1.3))


def rosette(
    c: Canvas,
    rng: np.random.Generator,
    colour: Colour,
    count: int,
    *,
    length: float,
    width: float,
    tip: float,
    rings: int = 1,
    heart: float,
    heart_colour: Colour,
    blotch: Colour | None = None,
    spots: bool = False,
    leaves: int = 2,
) -> None:
    """A flower seen from above: rings of petals around a heart."""
    if leaves:
        stem(c, rng, leaves=leaves)
    for ring in range(rings):
        scale, turn = 1 - 0.75 * ring / max(rings, 1), ring * np.pi / count
        for k in range(count):
            angle = 2 * np.pi * k / count + turn + rng.normal(0, 0.035)
            shape = petal(length * scale * rng.uniform(0.94, 1.06), width * scale, tip)
            c.polygon(rotate(shape, angle), colour, rng.uniform(0.78, 1.0) + 0.09 * ring)
            if blotch is not None:
                c.polygon(rotate(petal(length * 0.55, width * 0.6, tip), angle), blotch, rng.uniform(0.9, 1.1))
            if spots:
                c.stroke(rotate(np.array([[0.15, 0.0], [length * 0.85, 0.0]]), angle), 0.035, colour, 0.72)
                for r in (0.35, 0.5, 0.62):
                    c.disc(
                        tuple(rotate(np.array([[r, rng.uniform(-0.08, 0.08)]]), angle)[0]),
                        0.035,
                        (0.45, 0.10, 0.12),
                    )
    c.disc((0, 0), heart, heart_colour, 0.85)
    c.disc((0, 0), heart * 0.62, heart_colour, 1.12)


def pansy(c: Canvas, rng: np.random.Generator, colour: Colour, count: int) -> None:
    """Two petals behind, two at the sides, one below, with the dark face."""
    for angle, size, shade in (
        (-2.1, 1.0, 0.62),
        (-1.04, 1.0, 0.68),
        (3.05, 0.92, 0.92),
        (0.09, 0.92, 0.96),
        (1.57, 0.98, 1.05),
    ):
        angle += rng.normal(0, 0.05)
        c.polygon(rotate(petal(size, 0.98, 1.2), angle), colour, shade)
        if shade > 0.9:
            c.polygon(rotate(petal(size * 0.62, 0.55, 1.1), angle), (0.20, 0.06, 0.24))
    c.disc((0, 0.05), 0.13, (0.98, 0.80, 0.15))


def tulip(c: Canvas, rng: np.random.Generator, colour: Colour, count: int) -> None:
    """A cup seen from the side on a long stem."""
    stem(c, rng, top=0.3)
    open_ = rng.uniform(0.42, 0.58)
    c.polygon(np.array([[-0.2, -0.78], [0.2, -0.78], [0.3, 0.2], [-0.3, 0.2]]), colour, 0.62)
    for side in (-1, 1):
        edge = curve((0, 0.36), (side * 0.78, 0.36), (side * 0.52, -0.3), (side * open_, -0.92))
        c.polygon(np.concatenate([edge, curve((side * open_, -0.92), (side * 0.1, -0.5), (0, 0.36))]), colour, 0.82)
    front = np.concatenate(
        [
            curve((0, 0.38), (0.55, 0.25), (0.32, -0.4), (0, -0.74)),
            curve((0, -0.74), (-0.32, -0.4), (-0.55, 0.25), (0, 0.38)),
        ]
    )
    c.polygon(front, colour, 1.02)


def rose(c: Canvas, rng: np.random.Generator, colour: Colour, count: int) -> None:
    """Whorls of broad petals that turn into a spiral."""
    stem(c, rng)
    turn = rng.uniform(0, 2 * np.pi)
    for ring, (radius, n) in enumerate(((0.92, 6), (0.72, 5), (0.52, 4), (0.34, 3))):
        for k in range(n):
            angle = turn + 2 * np.pi * k / n + ring * 0.6
            centre = (np.cos(angle) * radius * 0.45, np.sin(angle) * radius * 0.45)
            c.disc(centre, radius * 0.62, colour, 0.56 + 0.10 * ring + 0.12 * (k % 2))
    t = np.linspace(0, 3.6 * np.pi, 40)
    c.disc((0, 0), 0.24, colour, 0.9)
    c.stroke(np.stack([np.cos(t + turn), np.sin(t + turn)], 1) * (0.02 + 0.022 * t[:, None]), 0.05, colour, 0.5)


def bells(c: Canvas, rng: np.random.Generator, colour: Colour, count: int) -> None:
    """A harebell: drooping bells along an arched stem."""
    side = rng.choice((-1, 1))
    line = curve((-0.55 * side, 1.5), (-0.6 * side, -1.1), (0.2 * side, -1.1), (0.75 * side, -0.55))
    c.stroke(line, 0.07, LEAF, 0.95)
    for at in np.linspace(6, 15, count).astype(int):
        hang = line[at] + (rng.uniform(-0.05, 0.05), 0.10)
        size = rng.uniform(0.50, 0.62)
        cup = np.array(
            [
                [-0.16, 0],
                [0.16, 0],
                [0.34, 0.62],
                [0.52, 0.92],
                [0.22, 0.80],
                [0, 0.98],
                [-0.22, 0.80],
                [-0.52, 0.92],
                [-0.34, 0.62],
            ]
        )
        c.polygon(cup * size + hang, colour, rng.uniform(0.78, 1.05))
        c.polygon(np.array([[-0.06, 0.05], [0.06, 0.05], [0.08, 0.8], [-0.08, 0.8]]) * size + hang, colour, 0.6)
        c.disc(tuple(hang), 0.09 * size * 2, LEAF, 0.8)


def iris(c: Canvas, rng: np.random.Generator, colour: Colour, count: int) -> None:
    """Three standards upright, three falls hanging, a yellow beard."""
    stem(c, rng, top=0.2, leaves=0)
    for x in (-0.35, 0.35):
        c.polygon(rotate(petal(1.5, 0.22, 0.4), -np.pi / 2 + x * 0.6) + (x, 1.6), LEAF, 1.1)
    for angle, length, shade in ((-2.0, 0.98, 0.86), (-1.14, 0.98, 0.92), (-1.57, 1.05, 1.08)):
        c.polygon(rotate(petal(length, 0.56, 1.0), angle), colour, shade)
    for angle in (2.55, 0.59, 1.57):
        c.polygon(rotate(petal(1.0, 0.60, 1.2), angle), colour, 0.62)
        c.polygon(rotate(petal(0.55, 0.16, 0.8), angle), (0.98, 0.80, 0.15))


def lotus(c: Canvas, rng: np.random.Generator, colour: Colour, count: int) -> None:
    """A fan of pointed petals on a leaf that lies on the water."""
    c.disc((0, 0.72), 1.1, LEAF, 0.9, squash=0.26)
    for row, spread, length, shade in ((0, 1.35, 1.15, 0.7), (1, 1.05, 1.10, 0.86), (2, 0.62, 0.95, 1.05)):
        for angle in np.linspace(-spread, spread, 7 - 2 * row):
            c.polygon(
                rotate(petal(length, 0.36, 0.55), angle - np.pi / 2) + (0, 0.62),
                colour,
                shade + rng.uniform(-0.05, 0.05),
            )


def foxglove(c: Canvas, rng: np.random.Generator, colour: Colour, count: int) -> None:
    """A spire of bells, larger towards the ground."""
    c.stroke(curve((0, -1.1), (rng.uniform(-0.1, 0.1), 0), (0, 1.6)), 0.09, LEAF)
    for i, y in enumerate(np.linspace(-1.0, 0.85, 8)):
        size, side = 0.20 + 0.24 * i / 7, 1 if i % 2 else -1
        for s in (side, -side):
            bell = np.array([[0, -0.35], [0.9, -0.1], [1.25, 0.55], [0.75, 0.85], [0.25, 0.45]]) * (
                s * size * 1.15,
                size * 1.15,
            ) + (0, y)
            c.polygon(bell, colour, 0.82 if s == side else 1.0)
            c.disc((s * size * 1.05, y + 0.66 * size), size * 0.22, (0.45, 0.08, 0.25))


# --- butterflies ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wings:
    """One side's fore and hind wing as outlines, (N, 2) with x outwards; mirrored for the other side."""

    fore: np.ndarray
    hind: np.ndarray


def _wing(*points: tuple[float, float]) -> np.ndarray:
    """A closed smooth outline through `points`, (8 n, 2): Catmull-Rom."""
    p = np.array(points, float)
    t = np.linspace(0, 1, 8, endpoint=False)[:, None]
    out = []
    for i in range(len(p)):
        a, b, d, e = p[i - 1], p[i], p[(i + 1) % len(p)], p[(i + 2) % len(p)]
        out.append(0.5 * (2 * b + (d - a) * t + (2 * a - 5 * b + 4 * d - e) * t**2 + (3 * b - 3 * d + e - a) * t**3))
    return np.concatenate(out)


BROAD = Wings(
    _wing((0.05, 0.0), (0.35, -0.55), (0.98, -0.85), (1.05, -0.45), (0.72, 0.08)),
    _wing((0.05, 0.02), (0.68, 0.05), (0.86, 0.45), (0.52, 0.86), (0.12, 0.62)),
)
LEAFY = Wings(
    _wing((0.05, 0.0), (0.45, -0.75), (0.86, -0.92), (0.92, -0.30), (0.62, 0.12)),
    _wing((0.05, 0.0), (0.78, 0.02), (0.95, 0.48), (0.66, 0.80), (0.14, 0.60)),
)
TAILED = Wings(
    _wing((0.05, -0.02), (0.50, -0.62), (1.10, -0.78), (0.92, -0.30), (0.55, 0.10)),
    _wing(
        (0.05, 0.0), (0.62, 0.06), (0.74, 0.48), (0.62, 0.70), (0.68, 1.18), (0.50, 1.20), (0.42, 0.78), (0.10, 0.62)
    ),
)
LONG = Wings(
    _wing((0.05, -0.05), (0.60, -0.50), (1.30, -0.42), (1.25, -0.18), (0.60, 0.06)),
    _wing((0.05, 0.0), (0.60, 0.06), (0.86, 0.32), (0.50, 0.50), (0.10, 0.38)),
)
LUNAR = Wings(
    _wing((0.05, 0.0), (0.40, -0.62), (1.00, -0.72), (0.90, -0.20), (0.60, 0.10)),
    _wing(
        (0.05, 0.0), (0.66, 0.06), (0.58, 0.55), (0.36, 0.95), (0.48, 1.55), (0.26, 1.58), (0.16, 0.95), (0.08, 0.55)
    ),
)


def _inward(outline: np.ndarray, amount: float) -> np.ndarray:
    """`outline` drawn in towards its centre: what a coloured field inside a dark border needs."""
    centre = outline.mean(0)
    return centre + (outline - centre) * amount


def butterfly(
    c: Canvas,
    rng: np.random.Generator,
    colour: Colour,
    count: int,
    *,
    wings: Wings,
    border: Colour | None = None,
    inset: float = 0.8,
    veins: bool = False,
    stripes: int = 0,
    eyes: bool = False,
    dots: bool = False,
    spot: bool = False,
    feathered: bool = False,
    body: Colour = DARK,
) -> None:
    """A butterfly from above. Its pattern is what the keywords add to `wings`."""
    open_ = rng.uniform(0.80, 1.05)  # how far the wings are spread
    for side in (-1, 1):
        for _, outline in (("hind", wings.hind), ("fore", wings.fore)):
            shade = rng.uniform(0.88, 1.0)
            flip = np.array([side * open_, 1.0])
            c.polygon(outline * flip, border if border is not None else colour, shade if border is None else 1.0)
            if border is not None:
                c.polygon(_inward(outline, inset) * flip, colour, shade)
            centre, reach = outline.mean(0), outline[np.argmax(np.linalg.norm(outline, axis=1))]
            if veins:
                for spread in (-0.45, -0.1, 0.3):
                    c.stroke(np.array([[0.06, 0.0], rotate(reach[None] * 0.92, spread)[0]]) * flip, 0.045, DARK)
            for k in range(stripes):
                along = 0.30 + 0.26 * k
                foot, across = reach * along, rotate(reach[None], np.pi / 2)[0] * (0.25 - 0.03 * k)
                c.stroke(
                    np.stack([foot - across, foot + across]) * flip,
                    0.085,
                    DARK if border is None else colour,
                    1.0,
                )
            if eyes:
                at = tuple((centre * 1.18) * flip)
                for radius, ring in (
                    (0.25, (0.95, 0.85, 0.45)),
                    (0.19, DARK),
                    (0.12, (0.30, 0.45, 0.85)),
                    (0.05, (0.95, 0.95, 0.95)),
                ):
                    c.disc(at, radius, ring)
            if dots:
                for k in range(0, len(outline), 4):
                    at = _inward(outline, 0.9)[k]
                    if np.linalg.norm(at) > 0.62:
                        c.disc(tuple(at * flip), 0.042, (0.97, 0.97, 0.95))
            if spot:
                c.disc(tuple(centre * flip), 0.085, (0.92, 0.45, 0.10))
    c.polygon(rotate(petal(1.15, 0.17, 0.9), np.pi / 2) + (0, -0.48), body)
    c.disc((0, -0.46), 0.095, body)
    for side in (-1, 1):
        antenna = curve((0, -0.5), (side * 0.10, -0.85), (side * 0.34, -1.0))
        c.stroke(antenna, 0.11 if feathered else 0.035, body)


# --- the classes ---------------------------------------------------------------------------------------------

Draw = Callable[..., None]


@dataclass(frozen=True)
class Species:
    """One class: how it is drawn, in which colours, with how many parts."""

    name: str
    kind: str  # "flower" or "butterfly"
    group: str  # "base": the shipped teacher knows it; "novel": kept for class-by-class training
    draw: Draw
    colours: tuple[str, ...]
    counts: tuple[int, ...] = (0,)  # petals, or bells; drawn uniformly
    traits: dict[str, Any] = field(default_factory=dict)
    upright: bool = False  # seen from the side: it only leans, it does not turn


def _flower(
    name: str,
    group: str,
    colours: str,
    draw: Draw = rosette,
    counts: tuple[int, ...] = (0,),
    upright: bool = False,
    **traits: Any,
) -> Species:
    return Species(name, "flower", group, draw, tuple(colours.split()), counts, traits, upright)


def _butterfly(name: str, group: str, colours: str, **traits: Any) -> Species:
    return Species(name, "butterfly", group, butterfly, tuple(colours.split()), traits=traits)


_GOLD: Colour = (0.97, 0.74, 0.12)

SPECIES: dict[str, Species] = {
    s.name: s
    for s in (
        _flower(
            "daisy",
            "base",
            "white pink cream",
            counts=(13, 15, 17),
            length=1.0,
            width=0.22,
            tip=0.9,
            heart=0.26,
            heart_colour=_GOLD,
        ),
        _flower(
            "sunflower",
            "base",
            "yellow orange",
            counts=(17, 19, 21),
            length=1.08,
            width=0.34,
            tip=0.35,
            rings=2,
            heart=0.48,
            heart_colour=(0.33, 0.18, 0.09),
        ),
        _flower(
            "poppy",
            "base",
            "red orange pink",
            counts=(4,),
            length=1.0,
            width=1.25,
            tip=1.2,
            heart=0.20,
            heart_colour=DARK,
            blotch=(0.12, 0.06, 0.10),
        ),
        _flower("pansy", "base", "purple yellow white blue", pansy),
        _flower("tulip", "base", "red yellow pink purple white", tulip, upright=True),
        _flower("rose", "base", "red pink yellow white", rose),
        _flower("harebell", "base", "blue violet purple", bells, counts=(3, 4), upright=True),
        _butterfly("monarch", "base", "orange red", wings=BROAD, border=DARK, inset=0.82, veins=True, dots=True),
        _butterfly("morpho", "base", "blue violet", wings=BROAD, border=DARK, inset=0.72),
        _butterfly("swallowtail", "base", "yellow cream white", wings=TAILED, stripes=3),
        _butterfly("brimstone", "base", "yellow green white", wings=LEAFY, spot=True, body=(0.45, 0.36, 0.22)),
        _butterfly("peacock", "base", "red brown purple", wings=LEAFY, eyes=True),
        _flower(
            "lily",
            "novel",
            "white pink orange",
            counts=(6,),
            length=1.15,
            width=0.46,
            tip=0.45,
            heart=0.12,
            heart_colour=(0.62, 0.72, 0.25),
            spots=True,
        ),
        _flower(
            "dahlia",
            "novel",
            "purple red orange pink",
            counts=(11, 13),
            length=1.02,
            width=0.42,
            tip=0.6,
            rings=5,
            heart=0.10,
            heart_colour=_GOLD,
        ),
        _flower("iris", "novel", "violet blue yellow white", iris, upright=True),
        _flower("lotus", "novel", "pink white cream", lotus, upright=True),
        _flower("foxglove", "novel", "pink purple white", foxglove, upright=True),
        _butterfly("longwing", "novel", "yellow white cream", wings=LONG, border=DARK, inset=0.0, stripes=3),
        _butterfly(
            "moonmoth", "novel", "green cream yellow", wings=LUNAR, spot=True, feathered=True, body=(0.86, 0.80, 0.62)
        ),
        _butterfly(
            "glasswing", "novel", "white green blue", wings=LONG, border=(0.42, 0.16, 0.08), inset=0.74, veins=True
        ),
    )
}

BASE = tuple(s.name for s in SPECIES.values() if s.group == "base")
NOVEL = tuple(s.name for s in SPECIES.values() if s.group == "novel")


@dataclass(frozen=True)
class Picture:
    """One drawing: `image` (H, W, 3) uint8, the subject's `mask` (H, W) in [0, 1], its caption and what it is."""

    image: np.ndarray
    mask: np.ndarray
    caption: str
    name: str
    colour: str
    background: str
    count: int


def _scene(rng: np.random.Generator, name: str, size: int) -> Image.Image:
    """A background: a vertical gradient, soft blobs of nearby colour, film grain; (3 size, 3 size) pixels blurred."""
    top, bottom = (np.array(c) * rng.uniform(0.85, 1.15) for c in BACKGROUNDS[name])
    ramp = np.linspace(0, 1, 16)[:, None, None]
    small = (
        (top * (1 - ramp) + bottom * ramp) * np.ones((1, 16, 1))
        + rng.normal(0, 0.03, (16, 16, 1))
        + rng.normal(0, 0.008, (16, 16, 3))
    )
    scene = Image.fromarray((small.clip(0, 1) * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    paint = ImageDraw.Draw(scene, "RGBA")
    for _ in range(rng.integers(2, 6)):  # bokeh
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0.04, 0.13) * size
        tone = tuple(int(255 * v) for v in np.clip(top * rng.uniform(0.7, 1.4), 0, 1))
        paint.ellipse((x - r, y - r, x + r, y + r), fill=(*tone, int(rng.uniform(40, 110))))
    return scene.filter(ImageFilter.GaussianBlur(size / 40))


_CAPTIONS = (
    "a photo of a {name}",
    "a photo of a {colour} {name}",
    "a {colour} {name} on a {background} background",
    "a photo of a {colour} {name}{parts} on a {background} background",
    "a {name} in front of {background}",
)


def _caption(rng: np.random.Generator, species: Species, colour: str, background: str, count: int) -> str:
    parts = ""
    if 0 < count < len(NUMBERS):
        parts = f" with {NUMBERS[count]} {'bells' if species.draw is bells else 'petals'}"
    caption = str(rng.choice(_CAPTIONS)).format(name=species.name, colour=colour, background=background, parts=parts)
    return caption.replace("a orange", "an orange").replace("a iris", "an iris")


def draw(name: str, index: int, seed: int = 0, size: int = SIDE) -> Picture:
    """Picture `index` of class `name`; a pure function of its arguments.

    Training and test pictures differ in `seed` alone (`data.flora` uses disjoint streams).
    """
    check(name in SPECIES, "class", name, f"must be one of {', '.join(SPECIES)}")
    species = SPECIES[name]
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), index))
    colour, background = str(rng.choice(species.colours)), str(rng.choice(tuple(BACKGROUNDS)))
    count = int(rng.choice(species.counts))
    full = size * SUPERSAMPLE
    scale = full * rng.uniform(0.36, 0.46) * (0.88 if species.kind == "butterfly" else 1.0)
    lean = rng.uniform(-0.22, 0.22) if species.upright else rng.uniform(-0.6, 0.6)
    tilt = rng.uniform(0.78, 1.0)  # seen a little from the side
    c, s = np.cos(lean), np.sin(lean)
    frame = np.array([[c, -s], [s, c]]) @ np.diag([1.0, tilt]) * scale
    offset = full * (0.5 + rng.uniform(-0.06, 0.06, 2))
    canvas = Canvas(_scene(rng, background, full), frame, offset, rng.uniform(0.82, 1.12))
    tint = tuple(np.clip(np.array(COLOURS[colour]) + rng.normal(0, 0.035, 3), 0, 1).tolist())
    species.draw(canvas, rng, tint, count, **species.traits)
    image = np.asarray(canvas.image.reduce(SUPERSAMPLE), np.float32) / 255
    image = (image * rng.uniform(0.95, 1.05, 3) + rng.normal(0, 0.008, image.shape)).clip(0, 1)  # white balance, grain
    mask = np.asarray(canvas.mask.reduce(SUPERSAMPLE), np.float32) / 255
    return Picture(
        (image * 255).round().astype(np.uint8),
        mask,
        _caption(rng, species, colour, background, count),
        name,
        colour,
        background,
        count,
    )
