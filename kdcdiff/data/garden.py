"""`garden`: the harder data set of flora's subjects; drawn from a seed as they are, but a picture may hold several.

Twelve *base* classes and eight *novel* ones. A picture is a pure function of (seed, class, index, companion): its plan
(how many subjects, and where), pose, size, light, background, colour, petal count and wing pattern vary. All of that is
data (`Picture`), its caption says some of it, and its mask says exactly where the subjects are.

Some classes are *siblings* that differ in one trait, whose ranges overlap or which may be faint (`Species.sibling`): no
judge reads all of them. Some combinations never meet in training (`HELD_OUT`): asked for, they test composition.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcdiff.data.drawing import (
    BACKGROUNDS,
    DARK,
    PALE,
    SIDE,
    SUPERSAMPLE,
    Canvas,
    Colour,
    article,
    developed,
    pose,
    scene,
    tinted,
)
from kdcdiff.data.subjects import (
    BROAD,
    LEAFY,
    LONG,
    LUNAR,
    TAILED,
    Dots,
    Species,
    bells,
    insect,
    iris,
    lotus,
    plant,
    rose,
    tulip,
)
from kdcdiff.errors import check

PAINTED = 64  # side at which a background is painted
COLOURS: dict[str, Colour] = {
    "white": (0.96, 0.95, 0.93),
    "yellow": (0.98, 0.86, 0.15),
    "orange": (0.97, 0.52, 0.09),
    "red": (0.84, 0.09, 0.13),
    "pink": (0.96, 0.55, 0.72),
    "purple": (0.52, 0.20, 0.66),
    "blue": (0.16, 0.38, 0.90),
    "green": (0.55, 0.82, 0.42),
    "brown": (0.50, 0.27, 0.13),
}
NUMBERS = {2: "two", 3: "three", 4: "four", 6: "six", 8: "eight", 13: "thirteen"}
PATTERNS = ("plain", "dotted", "banded")  # of a butterfly's wings, whatever its class
DOTS: Dots = (0.88, 0.55, 0.06)

_GOLD: Colour = (0.97, 0.74, 0.12)
_DAISY: dict[str, Any] = {"counts": (8, 13), "length": 1.0, "width": 0.27, "tip": 0.9, "heart_colour": _GOLD}
_POPPY: dict[str, Any] = {
    "counts": (4, 6), "length": 1.0, "width": 1.15, "tip": 1.2, "heart": 0.20, "heart_colour": DARK,
}  # fmt: skip
_SUNFLOWER: dict[str, Any] = {"length": 1.08, "width": 0.38, "tip": 0.35, "heart_colour": (0.33, 0.18, 0.09)}
_LILY: dict[str, Any] = {"length": 1.15, "width": 0.46, "tip": 0.45, "heart_colour": (0.62, 0.72, 0.25)}
_MONARCH: dict[str, Any] = {"wings": BROAD, "border": DARK, "inset": 0.82, "veins": True}
_PEACOCK: dict[str, Any] = {"wings": LEAFY, "glint": PALE}
_DAHLIA: dict[str, Any] = {"length": 1.02, "width": 0.42, "tip": 0.6, "rings": 5, "heart": 0.10}
_MOTH: dict[str, Any] = {"wings": LUNAR, "spot": True, "feathered": True, "body": (0.86, 0.80, 0.62)}

SPECIES: dict[str, Species] = {  # a trait of two numbers is a range that each subject draws from
    s.name: s
    for s in (
        plant("daisy", "base", "white pink yellow purple", heart=(0.19, 0.30), **_DAISY),
        plant("chamomile", "base", "white pink yellow purple", sibling="daisy", heart=(0.28, 0.40), **_DAISY),
        plant("sunflower", "base", "yellow orange red white", counts=(13,), rings=2, heart=0.50, **_SUNFLOWER),
        plant("poppy", "base", "red orange pink white purple", **_POPPY),
        plant("tulip", "base", "red yellow pink purple white", tulip, upright=True),
        plant("rose", "base", "red pink yellow white orange", rose),
        plant("harebell", "base", "blue purple white pink", bells, counts=(2, 4), upright=True),
        insect("monarch", "base", "orange red yellow white", **_MONARCH),
        insect("viceroy", "base", "orange red yellow white", line=(0.05, 0.11), sibling="monarch", **_MONARCH),
        insect("morpho", "base", "blue purple green orange", wings=BROAD, border=DARK, inset=0.72),
        insect("swallowtail", "base", "yellow white orange green", wings=TAILED, stripes=3),
        insect("peacock", "base", "red brown purple orange", eyes=(0.80, 1.10), **_PEACOCK),
        plant("lily", "novel", "white pink orange yellow", counts=(4, 6), heart=0.12, spots=True, **_LILY),
        plant("dahlia", "novel", "purple red orange pink", heart_colour=_GOLD, **_DAHLIA),
        plant("iris", "novel", "purple blue yellow white", iris, upright=True),
        plant("lotus", "novel", "pink white yellow purple", lotus, upright=True),
        plant("anemone", "novel", "red orange pink white purple", sibling="poppy", halo=(0.05, 0.14), **_POPPY),
        insect("ringlet", "novel", "red brown purple orange", eyes=(0.50, 0.86), sibling="peacock", **_PEACOCK),
        insect("longwing", "novel", "yellow white red green", wings=LONG, border=DARK, inset=0.0, stripes=3),
        insect("moonmoth", "novel", "green yellow white pink", **_MOTH),
    )
}

BASE = tuple(s.name for s in SPECIES.values() if s.group == "base")
NOVEL = tuple(s.name for s in SPECIES.values() if s.group == "novel")

HELD_OUT: tuple[tuple[str, str], ...] = (
    ("red", "sand"), ("yellow", "sky"), ("white", "night"), ("purple", "meadow"), ("pink", "stone"),
    ("orange", "night"), ("blue", "sand"),
    ("pink", "tulip"), ("white", "rose"), ("purple", "daisy"), ("red", "sunflower"), ("white", "harebell"),
    ("yellow", "monarch"), ("purple", "morpho"), ("green", "swallowtail"), ("red", "peacock"),
    ("tulip", "monarch"), ("rose", "morpho"), ("daisy", "sunflower"), ("peacock", "harebell"),
)  # fmt: skip
"""Pairs of words that no training caption holds together: a subject's colour with the background, its colour with its
class, two classes in one picture. `draw` leaves them out unless it is told otherwise."""


# --- the pictures --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One flower or butterfly of a picture."""

    name: str
    colour: str
    count: int  # petals or bells; 0: none to count
    pattern: str  # of a butterfly's wings; empty for a flower


@dataclass(frozen=True)
class Picture:
    """One drawing: `image` (H, W, 3) uint8, the subjects' `mask` (H, W) in [0, 1], its caption and what it shows."""

    image: np.ndarray
    mask: np.ndarray
    caption: str
    subjects: tuple[Subject, ...]
    background: str
    plan: str  # where they are: a key of `PLANS`

    @property
    def name(self) -> str:
        """The class of the picture: its first subject's."""
        return self.subjects[0].name


@dataclass(frozen=True)
class Plan:
    """Where the subjects are, as shares of the side (x, y); their scale; how often a picture has this plan."""

    places: tuple[tuple[float, float], ...]
    scale: tuple[float, float]
    often: float


_PAIR = (0.24, 0.28)
PLANS: dict[str, Plan] = {
    "alone": Plan(((0.5, 0.5),), (0.36, 0.46), 0.68),
    "left of": Plan(((0.27, 0.5), (0.73, 0.5)), _PAIR, 0.06),
    "right of": Plan(((0.73, 0.5), (0.27, 0.5)), _PAIR, 0.06),
    "above": Plan(((0.5, 0.27), (0.5, 0.73)), _PAIR, 0.06),
    "below": Plan(((0.5, 0.73), (0.5, 0.27)), _PAIR, 0.06),
    "three": Plan(((0.25, 0.68), (0.5, 0.29), (0.75, 0.68)), (0.20, 0.24), 0.08),
}
TWO = tuple(name for name, plan in PLANS.items() if len(plan.places) == 2)


def held_out(subjects: Sequence[Subject], background: str) -> bool:
    """Whether a picture joins what `HELD_OUT` keeps apart."""
    joined = {(s.colour, place) for s in subjects for place in (background, s.name)}
    joined |= {(a.name, b.name) for a in subjects for b in subjects}
    return any(pair in joined for pair in HELD_OUT)


def companions(name: str, classes: Sequence[str], unseen: bool = False) -> list[str]:
    """List the other `classes` that a picture of `name` may show beside it."""
    apart = {other for pair in HELD_OUT if name in pair and not unseen for other in pair} | {name}
    return [other for other in classes if other not in apart]


def _words(rng: np.random.Generator, subject: Subject) -> str:
    """Say a subject, each attribute of it named or left out: ``a red poppy with six petals``."""
    colour = f"{subject.colour} " if rng.random() < 0.8 else ""
    parts = ""
    if subject.count and rng.random() < 0.4:
        parts = f" with {NUMBERS[subject.count]} {'bells' if SPECIES[subject.name].draw is bells else 'petals'}"
    if subject.pattern and rng.random() < 0.4:
        parts = f" with {subject.pattern} wings"
    return article(f"{colour}{subject.name}{parts}")


def _caption(rng: np.random.Generator, subjects: Sequence[Subject], background: str, plan: str) -> str:
    """Say what is true; what is left out varies. A plan of several subjects is always said."""
    first = subjects[0]
    if plan == "alone":
        said = _words(rng, first) if rng.random() < 0.85 else f"a photo of {article(first.name)}"
    elif plan == "three":
        said = f"{_words(rng, first)}, three of them"
    else:
        said = " ".join(article(f"{s.colour} {s.name}") + (f" {plan}" if s is first else "") for s in subjects)
    return said + (f" on a {background} background" if rng.random() < 0.6 else "")


def draw(
    name: str, index: int, seed: int = 0, size: int = SIDE, *, companion: str | None = None, unseen: bool = False
) -> Picture:
    """Draw picture `index` of class `name`; a pure function of its arguments.

    Training and test pictures differ in `index` alone (`data.sources` uses disjoint ranges). With a `companion` the
    picture shows one subject of each class; otherwise all of its subjects are of the class. `unseen` lets in the
    combinations that training leaves out.
    """
    for each in (name, companion or name):
        check(each in SPECIES, "class", each, f"must be one of {', '.join(SPECIES)}")
    names = (name, companion or name, name)
    apart = {(name, companion), (companion, name)} & set(HELD_OUT)
    check(unseen or not apart, "companion", companion, f"kept apart from {name} in training; pass unseen=True")
    rng = np.random.default_rng((seed, zlib.crc32("/".join(filter(None, (name, companion))).encode()), index))
    plans = {plan: about.often for plan, about in PLANS.items() if not companion or plan in TWO}
    plan = str(rng.choice(list(plans), p=np.array(list(plans.values())) / sum(plans.values())))
    while True:
        background = str(rng.choice(tuple(BACKGROUNDS)))
        subjects = _cast(rng, names[: len(PLANS[plan].places)], same=plan == "three")
        if unseen or not held_out(subjects, background):
            break
    full = size * SUPERSAMPLE
    canvas = Canvas(scene(rng, background, full, PAINTED), np.eye(2), np.zeros(2), rng.uniform(0.82, 1.12))
    scale = rng.uniform(*PLANS[plan].scale)
    for k in sorted(range(len(subjects)), key=lambda k: PLANS[plan].places[k][1]):  # what is nearer is lower
        _place(canvas, rng, subjects[k], np.array(PLANS[plan].places[k]), scale)
    image, mask = developed(rng, canvas)
    return Picture(image, mask, _caption(rng, subjects, background, plan), subjects, background, plan)


def _cast(rng: np.random.Generator, names: Sequence[str], same: bool) -> tuple[Subject, ...]:
    """Draw a subject of each name; `same` gives all the first one's attributes."""
    cast = []
    for species in map(SPECIES.__getitem__, names):
        pattern = str(rng.choice(PATTERNS)) if species.kind == "butterfly" else ""
        cast.append(Subject(species.name, str(rng.choice(species.colours)), int(rng.choice(species.counts)), pattern))
    return tuple(cast[:1] * len(cast) if same else cast)


def _place(canvas: Canvas, rng: np.random.Generator, subject: Subject, at: np.ndarray, scale: float) -> None:
    """Paint one subject, `scale` of the picture's side large, around `at` (shares of the side)."""
    species, full = SPECIES[subject.name], canvas.image.width
    size = scale * rng.uniform(0.95, 1.05) * species.scale
    canvas.frame = pose(rng, species.upright) * size * full
    canvas.offset = full * (at + scale * rng.uniform(-0.15, 0.15, 2))
    tint = tinted(rng, COLOURS[subject.colour], 0.03)
    traits = {k: rng.uniform(*v) if isinstance(v, tuple) and len(v) == 2 else v for k, v in species.traits.items()}
    species.draw(canvas, rng, tint, subject.count, **traits, **_marks(species, subject.pattern, tint))


def _marks(species: Species, pattern: str, tint: Colour) -> dict[str, Any]:
    """Return what draws a wing pattern, in a tone that shows on `tint`."""
    mark = PALE if "border" in species.traits or np.mean(tint) < 0.55 else DARK
    return {"dotted": {"dots": DOTS, "dot_colour": mark}, "banded": {"band": mark}}.get(pattern, {})
