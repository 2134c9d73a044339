"""The same pictures through two extractors: what each says of them, and where the two contradict each other.

For example:

    eyes = extractors.features(classifier), extractors.embeddings(clip)
    agreement(*(through(pictures, real, eye) for eye in eyes))["KID"].contradicted   # pairs of models
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from kdcdiff.data.image_set import ImageSet
from kdcdiff.metrics import fid_kid
from kdcdiff.metrics.estimate import Estimate
from kdcdiff.metrics.extractors import Extractor
from kdcdiff.metrics.precision_recall import precision_recall

WORSE = {"FID∞": 1, "KID": 1, "precision": -1, "recall": -1}  # measure -> the sign of what is worse
MEASURES = tuple(WORSE)  # the first is the primary distance
WORDS = {"FID∞": "fid_infinity", "KID": "kid", "precision": "precision", "recall": "recall"}  # as they are recorded

Seen = dict[str, dict[str, Estimate]]
"""A set's name -> each of `MEASURES`."""


def through(pictures: Mapping[str, ImageSet], real: ImageSet, eye: Extractor) -> Seen:
    """Measure sets of pictures against `real` ones through an extractor. UserError: sets too small for a measure."""
    known, found = fid_kid.extract(real, eye), {}
    for name, images in pictures.items():
        own = fid_kid.extract(images, eye)
        values = (
            fid_kid.fid_infinity(own, known, low_rank=True),
            fid_kid.kid(own, known),
            *precision_recall(own, known),
        )
        found[name] = dict(zip(MEASURES, values, strict=True))
    return found


class Agreement(NamedTuple):
    """Pairs of sets: how many two eyes put in the `same` order, how many in `opposite` ones.

    Of the latter are `contradicted` those of which each eye is sure, by the interval of its own difference.
    """

    same: int
    opposite: int
    contradicted: tuple[tuple[str, str], ...]


def agreement(one: Seen, other: Seen) -> dict[str, Agreement]:
    """Compare the order in which two eyes put the same sets, by each of `MEASURES`."""
    found = {}
    for measure in MEASURES:
        against, sure = [], []
        for pair in combinations(one, 2):
            (a, b), (c, d) = ([eye[name][measure] for name in pair] for eye in (one, other))
            if (a.value - b.value) * (c.value - d.value) < 0:
                against.append(pair)
                sure += [pair] if None not in (a.above(b), c.above(d)) else []
        pairs = len(one) * (len(one) - 1) // 2
        found[measure] = Agreement(pairs - len(against), len(against), tuple(sure))
    return found
