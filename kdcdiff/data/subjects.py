"""What is drawn: flowers and butterflies as polygons in a subject's frame, and `Species`, what makes one a class.

Each function draws one subject of a colour on a canvas, with so many parts where it has any to count; what else makes
a class of it are keywords.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdcdiff.data.drawing import DARK, LEAF, PALE, Canvas, Colour, curve, petal, rotate

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
    halo: float = 0.0,
    blotch: Colour | None = None,
    spots: bool = False,
    leaves: int = 2,
) -> None:
    """A flower seen from above: rings of petals around a heart, which may have a pale halo. 0: as many as a daisy's."""
    count = count or 12
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
    if halo:
        c.disc((0, 0), heart + halo, PALE)
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
    for at in np.linspace(6, 15, count or 3).astype(int):
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


def _across(reach: np.ndarray, at: float, width: float) -> np.ndarray:
    """A line over a wing at the share `at` of its `reach` (2,), so much to either side, (2, 2)."""
    along = rotate(reach[None], np.pi / 2)[0] * width
    return np.stack([reach * at - along, reach * at + along])


def _inward(outline: np.ndarray, amount: float) -> np.ndarray:
    """`outline` drawn in towards its centre: what a coloured field inside a dark border needs."""
    centre = outline.mean(0)
    return centre + (outline - centre) * amount


EYE = ((0.25, (0.95, 0.85, 0.45)), (0.19, DARK), (0.12, (0.30, 0.45, 0.85)))  # rings: radius, colour; then a glint
Dots = tuple[float, float, float]  # along the outline drawn in to this share; from how far out; their radius
DOTS: Dots = (0.9, 0.62, 0.042)


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
    line: float = 0.0,
    eyes: float = 0.0,
    glint: Colour = (0.95, 0.95, 0.95),
    dots: Dots | None = None,
    dot_colour: Colour = PALE,
    band: Colour | None = None,
    spot: bool = False,
    feathered: bool = False,
    body: Colour = DARK,
) -> None:
    """A butterfly from above. Its pattern is what the keywords add to `wings`."""
    open_ = rng.uniform(0.80, 1.05)  # how far the wings are spread
    for side in (-1, 1):
        for name, outline in (("hind", wings.hind), ("fore", wings.fore)):
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
                stripe = _across(reach, 0.30 + 0.26 * k, 0.25 - 0.03 * k) * flip
                c.stroke(stripe, 0.085, DARK if border is None else colour)
            if line and name == "hind":
                c.stroke(_across(reach, 0.60, 0.34) * flip, line, DARK)
            if eyes:
                for radius, ring in (*EYE, (0.05, glint)):
                    c.disc(tuple((centre * 1.18) * flip), radius * eyes, ring)
            if dots is not None:
                drawn_in, beyond, radius = dots
                for at in _inward(outline, drawn_in)[::4]:
                    if np.linalg.norm(at) > beyond:
                        c.disc(tuple(at * flip), radius, dot_colour)
            if band is not None and name == "fore":
                c.stroke(_across(reach, 0.66, 0.19) * flip, 0.14, band)
            if spot:
                c.disc(tuple(centre * flip), 0.085, (0.92, 0.45, 0.10))
    c.polygon(rotate(petal(1.15, 0.17, 0.9), np.pi / 2) + (0, -0.48), body)
    c.disc((0, -0.46), 0.095, body)
    for side in (-1, 1):
        antenna = curve((0, -0.5), (side * 0.10, -0.85), (side * 0.34, -1.0))
        c.stroke(antenna, 0.11 if feathered else 0.035, body)


# --- classes -------------------------------------------------------------------------------------------------

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
    sibling: str = ""  # the class that it differs from in one trait

    @property
    def scale(self) -> float:
        """How large it is drawn: wings reach farther than petals."""
        return 0.88 if self.kind == "butterfly" else 1.0


def plant(
    name: str,
    group: str,
    colours: str,
    draw: Draw = rosette,
    counts: tuple[int, ...] = (0,),
    upright: bool = False,
    sibling: str = "",
    **traits: Any,
) -> Species:
    """Make a class of flowers."""
    return Species(name, "flower", group, draw, tuple(colours.split()), counts, traits, upright, sibling)


def insect(name: str, group: str, colours: str, sibling: str = "", **traits: Any) -> Species:
    """Make a class of butterflies."""
    return Species(name, "butterfly", group, butterfly, tuple(colours.split()), traits=traits, sibling=sibling)
