"""A figure and how sure of it one may be: `Estimate`, and every way in which the project gives it an interval."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from kdcdiff.errors import check

RESAMPLES = 1000  # of a bootstrap
UNKNOWN = "no interval"  # in the place of bounds that are infinite: there is nothing between them to read
_NEGATIVE_ZERO = re.compile(r"-(?=0[0.,]*%?$)")


def written(number: float, form: str) -> str:
    """Format a number in `form`; what rounds to zero has no sign."""
    return _NEGATIVE_ZERO.sub("", format(number, form))


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval: of no width where it is exact, infinite where it is unknown.

    `n` counts the samples behind it, in what the replication is over (pictures, pairs, seeds, rounds). Sums and
    differences of two that have as many `replicates` are taken replicate by replicate: students of one seed share their
    batches, methods of one repetition the order of the classes. Of others the two intervals are taken as independent,
    and their arms combined by the square-root method (Zou & Donner 2008, doi:10.1002/sim.3095), which respects lopsided
    intervals; such sums keep no `n`, where a multiple does.
    """

    value: float
    low: float
    high: float
    n: int | None = None
    unit: str = ""
    extractor: str = ""  # what it was seen through
    replicates: tuple[float, ...] = field(default=(), repr=False)  # one value for each seed or order, in their order

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    @property
    def is_known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __add__(self, other: Estimate | float) -> Estimate:
        o = as_estimate(other)
        if self.replicates and len(self.replicates) == len(o.replicates):
            return over_seeds(np.add(self.replicates, o.replicates))
        value = self.value + o.value
        down = math.hypot(self.value - self.low, o.value - o.low)
        up = math.hypot(self.high - self.value, o.high - o.value)
        return Estimate(value, value - down, value + up)

    def __neg__(self) -> Estimate:
        return self * -1

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self + (-as_estimate(other))

    def __rsub__(self, other: float) -> Estimate:
        return as_estimate(other) - self

    def __mul__(self, factor: float) -> Estimate:
        low, high = sorted((self.low * factor, self.high * factor)) if factor else (0.0, 0.0)
        return Estimate(self.value * factor, low, high, self.n, replicates=tuple(x * factor for x in self.replicates))

    def __truediv__(self, factor: float) -> Estimate:
        return self * (1 / factor)

    __radd__ = __add__
    __rmul__ = __mul__

    def above(self, other: Estimate | float) -> bool | None:
        """Whether it is larger: None where the interval of the difference holds zero."""
        d = self - other
        if d.is_exact:
            return d.value > 0
        return True if d.low > 0 else False if d.high < 0 else None

    def __format__(self, form: str) -> str:
        """Value and interval in the format `form`: ``0.93 [0.90, 0.95]``; the value alone where it is exact.

        Where a bound is infinite it is ``0.93 (no interval)``.
        """
        if not form:
            return str(self)
        return written(self.value, form) + (self._ends(form) if self.is_known else f" ({UNKNOWN})")

    def _ends(self, form: str) -> str:
        return "" if self.is_exact else f" [{written(self.low, form)}, {written(self.high, form)}]"

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        ends = self._ends(".4g") if self.is_known else ""
        about = [UNKNOWN] * (not self.is_known) + [f"n={self.n}"] * (self.n is not None)
        said = ", ".join(about + [self.extractor] * bool(self.extractor))
        return f"{written(self.value, '.4g')}{unit}{ends}" + (f" ({said})" if said else "")


def as_estimate(x: Estimate | float) -> Estimate:
    """Return an estimate as it is, and a number as an exact one."""
    return x if isinstance(x, Estimate) else Estimate(x, x, x)


def around(value: float, half: float, n: int | None = None, unit: str = "", extractor: str = "") -> Estimate:
    """An estimate with a symmetric interval of half-width `half`."""
    return Estimate(value, value - half, value + half, n, unit, extractor)


def proportion(hits: int, n: int, unit: str = "", extractor: str = "") -> Estimate:
    """hits / n with Wilson's interval. UserError: hits outside 0 to n, or n below 1."""
    check(0 <= hits <= n and n > 0, "hits", hits, f"must be between 0 and n={n}, and n at least 1")
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n, unit, extractor)


def mean_of(values: ArrayLike, *, unit: str = "", extractor: str = "") -> Estimate:
    """The mean of values (N,) with a percentile bootstrap interval. UserError: fewer than 2, or not finite."""
    x = np.asarray(values, dtype=np.float64)
    check(x.ndim == 1 and len(x) >= 2, "values", x.shape, "must be at least 2 for an interval")
    broken = x[~np.isfinite(x)]
    check(len(broken) == 0, "values", float(broken[0]) if len(broken) else None, "must be finite")
    batch = max(1, 10_000_000 // len(x))
    rng = np.random.default_rng(0)
    found = stats.bootstrap((x,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng, batch=batch)
    low, high = found.confidence_interval
    return Estimate(float(x.mean()), float(low), float(high), len(x), unit, extractor)


def over_seeds(
    values: Sequence[float] | np.ndarray, unit: str = "", within: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """The mean of one value for each seed, (n,), with Student's interval cut to where a mean can lie, `within`.

    Of a single seed there is no interval: it is infinite, and decides nothing. Nor is there one of seeds that agree to
    the last digit, as shares of a few pictures do by chance: it is as wide as `within`.
    """
    mean, n, low, high = float(np.mean(values)), len(values), *within
    if n < 2:
        low, high = -math.inf, math.inf
    elif np.ptp(values) > 1e-12 * max(abs(mean), 1):
        half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
        low, high = max(mean - half, low), min(mean + half, high)
    return Estimate(mean, float(low), float(high), n, unit, replicates=tuple(map(float, values)))


def ratio(values: Sequence[float] | np.ndarray, reference: Sequence[float] | np.ndarray, unit: str = "") -> Estimate:
    """The geometric mean of values / reference, both (n,) and above 0, with Student's interval on the logs.

    What is measured against itself is 1, exactly.
    """
    if np.array_equal(values, reference):
        return Estimate(1.0, 1.0, 1.0, len(values), unit)
    logs = np.log(np.asarray(values, dtype=np.float64)) - np.log(np.asarray(reference, dtype=np.float64))
    middle = over_seeds(logs)
    low, value, high = (float(np.exp(x)) for x in (middle.low, middle.value, middle.high))
    return Estimate(value, low, high, len(logs), unit)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Spearman's rho of n pairs; Fisher's interval with the standard error of Bonett & Wright (2000).

    UserError: fewer than 4 pairs.
    """
    n = len(a)
    check(n >= 4, "pairs", n, "must be at least 4 for an interval")
    rho = float(stats.spearmanr(a, b).statistic)
    half = 1.96 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    middle = np.arctanh(np.clip(rho, -0.999999, 0.999999))
    return Estimate(rho, float(np.tanh(middle - half)), float(np.tanh(middle + half)), n, "rank correlation")


def jackknife(leave_out: Callable[[int], Any], groups: int, shrink: float = 1.0) -> float:
    """Half the 95 % interval of a smooth statistic from its values without each group; `shrink` scales its variance."""
    values = np.array([float(leave_out(g)) for g in range(groups)])
    variance = (groups - 1) / groups * float(((values - values.mean()) ** 2).sum())
    return float(stats.t.ppf(0.975, groups - 1)) * math.sqrt(variance * shrink)
