"""What printed metrics say without the images: spreads, distances, digits, and the bias of FID, simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """How far one value lies from a sample that it should belong to."""

    value: float
    mean: float
    spread: float  # standard deviation of the sample
    t: float  # in spreads, the mean's own uncertainty included
    p: float  # two-sided, Student's t with n - 1 degrees of freedom
    low: float  # 95 % prediction interval of one more value
    high: float


def distance(value: float, sample: Sequence[float]) -> Distance:
    """Measure how far one more value lies from a normal sample, as a prediction interval does.

    UserError: a sample of fewer than 3.
    """
    n = len(sample)
    check(n >= 3, "sample", n, "at least 3 values")
    mean, spread = float(np.mean(sample)), float(np.std(sample, ddof=1))
    unit = spread * (1 + 1 / n) ** 0.5
    t = (value - mean) / unit
    reach = float(stats.t.ppf(0.975, n - 1)) * unit
    return Distance(value, mean, spread, t, float(2 * stats.t.sf(abs(t), n - 1)), mean - reach, mean + reach)


def separations(means: Sequence[float], errors: Sequence[float]) -> Array:
    """Divide every pair's difference by its combined error: the upper triangle, (n (n - 1) / 2,), row by row."""
    pairs = [(i, j) for i in range(len(means)) for j in range(i + 1, len(means))]
    return np.array([abs(means[i] - means[j]) / hypot(errors[i], errors[j]) for i, j in pairs])


def whole(texts: Sequence[str]) -> tuple[int, int, float]:
    """Count the whole ones among numbers printed with two decimals or more: hits, numbers, chance of so many hits.

    The chance takes the first two decimals as evenly spread.
    """
    decimals = [t.partition(".")[2] for t in texts if len(t.partition(".")[2]) >= 2]
    hits = sum(set(d) == {"0"} for d in decimals)
    return hits, len(decimals), float(stats.binom.sf(hits - 1, len(decimals), 0.01))


def roots(texts: Sequence[str], *, repeats: int = 20_000, seed: int = 0) -> tuple[int, int, float]:
    """Count the numbers, printed with four decimals, that are the rounded root of whole ten-thousandths.

    Returned are hits, numbers, and the share of `repeats` simulated columns with as many: as many numbers, each drawn
    evenly from all that could be printed between the least and the largest one.
    """
    units = np.array([round(float(t) * 1e4) for t in texts])
    squares = {round(k**0.5 * 100) for k in range(1, int(units.max() / 100) ** 2 + 202)}  # in ten-thousandths
    hit = np.array([value in squares for value in range(units.max() + 1)])
    drawn = np.random.default_rng(seed).integers(units.min(), units.max() + 1, (repeats, len(units)))
    hits = int(hit[units].sum())
    return hits, len(units), float((hit[drawn].sum(1) >= hits).mean())


def coincidence(texts: Sequence[str], *, repeats: int = 20_000, seed: int = 0) -> float:
    """Simulate how often at least two of as many numbers, drawn evenly between the least and largest, print alike.

    All are printed with two decimals.
    """
    units = np.array([round(float(t) * 100) for t in texts])
    drawn = np.random.default_rng(seed).integers(units.min(), units.max() + 1, (repeats, len(units)))
    drawn.sort(axis=1)
    return float((np.diff(drawn, axis=1) == 0).any(1).mean())


def p_value(difference: Estimate, n: int | None = None) -> float:
    """Read a two-sided p from a 95 % interval: Student's with n - 1 degrees of freedom, the normal where n is unknown.

    It is 0.05 where the interval ends at zero, and 1 where the interval is unknown. Of a lopsided interval the arm
    towards zero counts.
    """
    arm = difference.value - difference.low if difference.value > 0 else difference.high - difference.value
    if arm == 0 or not np.isfinite(arm):
        return 0.0 if arm == 0 and difference.value else 1.0
    law = stats.t(n - 1) if n and n > 1 else stats.norm()
    return float(2 * law.sf(law.ppf(0.975) * abs(difference.value) / arm))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p values for their number by Holm's step-down method (1979); in the order given, at most 1."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = worst
    return adjusted


def spectrum(kind: str, dimensions: int) -> Array:
    """Give the variances of a feature's directions, (dimensions,), of total 1: ``flat``, or ``falling`` as 1/k."""
    check(kind in ("flat", "falling"), "spectrum", kind, "flat or falling")
    values = np.ones(dimensions) if kind == "flat" else 1 / np.arange(1, dimensions + 1)
    return values / values.sum()


def fid(x: Array, y: Array) -> float:
    """Compute the Fréchet distance of two samples (n, d), equation (7).

    The trace of the root of the product of the covariances is the sum of the singular values of AB', an n x n matrix:
    exact, and cheap where n is less than d, as in the simulation; `kdcdiff.metrics.fid_kid` has the usual formula.
    """
    a, b = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross)


def kid(x: Array, y: Array) -> float:
    """Compute the unbiased squared MMD of two samples with the cubic kernel (x'y / d + 1)^3, equation (8)."""
    d, n, m = x.shape[1], len(x), len(y)
    xx, yy, xy = ((p @ q.T / d + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def perfect_model(n: int, kind: str, *, dimensions: int, repeats: int, seed: int) -> tuple[Array, Array]:
    """Simulate FID and KID, each (repeats,), of perfect models: two samples of n from one Gaussian; the truth is 0.

    FID is given as a share of twice the total variance, its value for centred sets with nothing in common; KID for
    features of unit mean variance.
    """
    rng = np.random.default_rng((seed, n, dimensions))
    scale = np.sqrt(spectrum(kind, dimensions))
    fids, kids = np.empty(repeats), np.empty(repeats)
    for i in range(repeats):
        x, y = rng.standard_normal((2, n, dimensions)) * scale
        fids[i] = fid(x, y) / 2
        kids[i] = kid(x * dimensions**0.5, y * dimensions**0.5)
    return fids, kids
