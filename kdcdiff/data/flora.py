"""`flora`: the embedded data set, flowers and butterflies drawn from a seed.

Twelve *base* classes train the shipped pipeline; eight *novel* ones are kept for class-by-class training, so no
generator weight has ever seen them. A picture is a pure function of (seed, class, index): its pose, size, light,
background, colour and petal count vary, its caption names them, and its mask says exactly where the subject is.

There is no photograph in it and nothing to download. `kdcdiff.data.garden` is the harder set of the same subjects.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from kdcdiff.data.drawing import BACKGROUNDS, DARK, SIDE, SUPERSAMPLE, Canvas, Colour, developed, pose, scene, tinted
from kdcdiff.data.subjects import (
    BROAD,
    DOTS,
    LEAFY,
    LONG,
    LUNAR,
    TAILED,
    Species,
    bells,
    foxglove,
    insect,
    iris,
    lotus,
    pansy,
    plant,
    rose,
    tulip,
)
from kdcdiff.errors import check

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

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_GOLD: Colour = (0.97, 0.74, 0.12)

SPECIES: dict[str, Species] = {
    s.name: s
    for s in (
        plant(
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
        plant(
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
        plant(
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
        plant("pansy", "base", "purple yellow white blue", pansy),
        plant("tulip", "base", "red yellow pink purple white", tulip, upright=True),
        plant("rose", "base", "red pink yellow white", rose),
        plant("harebell", "base", "blue violet purple", bells, counts=(3, 4), upright=True),
        insect("monarch", "base", "orange red", wings=BROAD, border=DARK, inset=0.82, veins=True, dots=DOTS),
        insect("morpho", "base", "blue violet", wings=BROAD, border=DARK, inset=0.72),
        insect("swallowtail", "base", "yellow cream white", wings=TAILED, stripes=3),
        insect("brimstone", "base", "yellow green white", wings=LEAFY, spot=True, body=(0.45, 0.36, 0.22)),
        insect("peacock", "base", "red brown purple", wings=LEAFY, eyes=1.0),
        plant(
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
        plant(
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
        plant("iris", "novel", "violet blue yellow white", iris, upright=True),
        plant("lotus", "novel", "pink white cream", lotus, upright=True),
        plant("foxglove", "novel", "pink purple white", foxglove, upright=True),
        insect("longwing", "novel", "yellow white cream", wings=LONG, border=DARK, inset=0.0, stripes=3),
        insect(
            "moonmoth", "novel", "green cream yellow", wings=LUNAR, spot=True, feathered=True, body=(0.86, 0.80, 0.62)
        ),
        insect("glasswing", "novel", "white green blue", wings=LONG, border=(0.42, 0.16, 0.08), inset=0.74, veins=True),
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


def draw(name: str, index: int, seed: int = 0, size: int = SIDE, *, unseen: bool = False) -> Picture:
    """Draw picture `index` of class `name`; a pure function of its arguments.

    Training and test pictures differ in `index` alone (`data.sources` uses disjoint ranges). `unseen` draws its colour
    from all there are, and not from the class's own: what no training picture shows.
    """
    check(name in SPECIES, "class", name, f"must be one of {', '.join(SPECIES)}")
    species = SPECIES[name]
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), index))
    colour = str(rng.choice(tuple(COLOURS) if unseen else species.colours))
    background, count = str(rng.choice(tuple(BACKGROUNDS))), int(rng.choice(species.counts))
    full = size * SUPERSAMPLE
    scale = full * rng.uniform(0.36, 0.46) * species.scale
    frame = pose(rng, species.upright) * scale
    offset = full * (0.5 + rng.uniform(-0.06, 0.06, 2))
    canvas = Canvas(scene(rng, background, full, painted=full), frame, offset, rng.uniform(0.82, 1.12))
    species.draw(canvas, rng, tinted(rng, COLOURS[colour], 0.035), count, **species.traits)
    image, mask = developed(rng, canvas)
    return Picture(image, mask, _caption(rng, species, colour, background, count), name, colour, background, count)
