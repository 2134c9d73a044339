"""What a drawn picture shows, in the words of its captions; and prompts that ask for it, seen in training or new.

Subjects are told in the order of their places: left before right, upper before lower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcdiff.data import flora, garden
from kdcdiff.data.drawing import BACKGROUNDS, article
from kdcdiff.errors import check

Picture = flora.Picture | garden.Picture
NONE = "none"  # what there is not: a second subject, parts to count, a pattern
MANY = "many"  # more parts than captions count
ARRANGEMENTS = {
    "alone": "alone",
    "left of": "side by side",
    "right of": "side by side",
    "above": "stacked",
    "below": "stacked",
    "three": "three",
}


def _parts(counts: Sequence[int], most: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_part(n, most) for n in sorted(counts)))


def _part(count: int, most: int) -> str:
    return NONE if count == 0 else str(count) if count <= most else MANY


_MOST = {"flora": len(flora.NUMBERS) - 1, "garden": max(garden.NUMBERS)}  # parts that captions count
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {  # data set -> attribute -> its values
    "flora": {
        "class": tuple(flora.SPECIES),
        "colour": tuple(flora.COLOURS),
        "background": tuple(BACKGROUNDS),
        "parts": _parts([n for s in flora.SPECIES.values() for n in s.counts], _MOST["flora"]),
    },
    "garden": {
        "background": tuple(BACKGROUNDS),
        "arrangement": tuple(dict.fromkeys(ARRANGEMENTS.values())),
        "first class": tuple(garden.SPECIES),
        "first colour": tuple(garden.COLOURS),
        "second class": (NONE, *garden.SPECIES),
        "second colour": (NONE, *garden.COLOURS),
        "parts": _parts([n for s in garden.SPECIES.values() for n in s.counts], _MOST["garden"]),
        "pattern": (NONE, *garden.PATTERNS),
    },
}


def shown(picture: Picture) -> dict[str, str]:
    """Return what a picture shows: a value of each of its data set's `ATTRIBUTES`.

    In a garden parts and pattern are the first subject's.
    """
    if isinstance(picture, flora.Picture):
        parts = _part(picture.count, _MOST["flora"])
        return {"class": picture.name, "colour": picture.colour, "background": picture.background, "parts": parts}
    places = [sum(place) for place in garden.PLANS[picture.plan].places]
    first, *rest = (picture.subjects[k] for k in np.argsort(places))
    return {
        "background": picture.background,
        "arrangement": ARRANGEMENTS[picture.plan],
        "first class": first.name,
        "first colour": first.colour,
        "second class": rest[0].name if rest else NONE,
        "second colour": rest[0].colour if rest else NONE,
        "parts": _part(first.count, _MOST["garden"]),
        "pattern": first.pattern or NONE,
    }


def look(picture: Picture) -> dict[str, str]:
    """Return what is the subject's own of what a picture shows: not where it stands, nor beside whom."""
    return {name: value for name, value in shown(picture).items() if name not in ("background", "arrangement")}


def targets(pictures: Sequence[Picture], attributes: Mapping[str, Sequence[str]]) -> Tensor:
    """Number what the pictures show: (N, attributes) int64, into the values of each."""
    return torch.tensor([[values.index(shown(p)[name]) for name, values in attributes.items()] for p in pictures])


# --- prompts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A prompt, what a picture of it must show (values of some attributes), and whether training could hold it."""

    prompt: str
    wanted: Mapping[str, str]
    seen: bool


def _of_flora(name: str, plan: str) -> Iterator[Request]:
    """Yield every colour and background of a class; training has its own colours alone."""
    check(plan == "alone", "plan", plan, "must be alone: a picture of flora has one subject")
    for colour in flora.COLOURS:
        for ground in BACKGROUNDS:
            prompt = f"{article(f'{colour} {name}')} on a {ground} background"
            wanted = {"class": name, "colour": colour, "background": ground}
            yield Request(prompt, wanted, colour in flora.SPECIES[name].colours)


def _of_garden(name: str, plan: str, classes: Sequence[str]) -> Iterator[Request]:
    """Yield every colour and background of a class, alone or beside every other; training lacks `garden.HELD_OUT`."""
    known = ("alone", *garden.TWO)
    check(plan in known, "plan", plan, f"must be one of {', '.join(known)}")
    cast = [(name, colour) for colour in garden.SPECIES[name].colours]
    beside = [(other, colour) for other in classes if other != name for colour in garden.SPECIES[other].colours]
    alone: list[tuple[tuple[str, str], ...]] = [(one,) for one in cast]
    for told in alone if plan == "alone" else [(one, two) for one in cast for two in beside]:
        subjects = [garden.Subject(who, colour, 0, "") for who, colour in told]
        words = f" {plan} ".join(article(f"{s.colour} {s.name}") for s in subjects)
        inward = subjects if plan in ("alone", "left of", "above") else subjects[::-1]
        for ground in BACKGROUNDS:
            wanted = {"background": ground, "arrangement": ARRANGEMENTS[plan]}
            for place, subject in zip(("first", "second"), inward, strict=False):
                wanted |= {f"{place} class": subject.name, f"{place} colour": subject.colour}
            yield Request(f"{words} on a {ground} background", wanted, not garden.held_out(subjects, ground))


def requests(
    dataset: str, classes: Sequence[str], per_class: int, *, plan: str = "alone", seed: int = 0
) -> list[Request]:
    """Draw prompts that state colour and background, `per_class` of each class, alone or with a companion.

    Every other one joins what no training picture does, as far as the class has such combinations. UserError: a data
    set that is not drawn, a plan that it does not have.
    """
    check(dataset in ATTRIBUTES, "dataset", dataset, f"must be one of {', '.join(ATTRIBUTES)}")
    rng, made = np.random.default_rng(seed), []
    for name in classes:
        found = list(_of_flora(name, plan) if dataset == "flora" else _of_garden(name, plan, classes))
        for k in range(per_class):
            own = [request for request in found if request.seen == (k % 2 == 0)] or found
            made.append(own[int(rng.integers(len(own)))])
    return made
