"""A figure and how sure of it one may be: `Estimate`, and where its interval comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from kdcdiff.errors import check
from kdcdiff.extractors import check_images

Images = Tensor | Iterable[Tensor]  # (N, 3, H, W) uint8, whole or in batches


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, the number of images (or pairs) behind it, and what it was seen
    through.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str
    extractor: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high

    def __str__(self) -> str:
        through = f", {self.extractor}" if self.extractor else ""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.value:.4g}{unit} [{self.low:.4g}, {self.high:.4g}] (n={self.n}{through})"


def name_of(extractor: object) -> str:
    return str(getattr(extractor, "name", type(extractor).__name__))


def batches(images: Images, size: int = 256) -> Iterator[Tensor]:
    """Batches of (n, 3, H, W) uint8; UserError for anything else, none at all, or images of more than one
    size.
    """
    first: tuple[int, ...] | None = None
    for part in images.split(size) if isinstance(images, Tensor) else images:
        first = first or tuple(part.shape[1:])
        check(
            tuple(part.shape[1:]) == first,
            "images",
            tuple(part.shape[1:]),
            f"must all have one size, {first}",
        )
        yield check_images(part)
    check(first is not None and 0 not in first, "images", 0, "must be at least one image")


# --- intervals ---------------------------------------------------------------------------------------------


def proportion(hits: int, n: int, unit: str = "", extractor: str = "") -> Estimate:
    """hits / n with Wilson's interval."""
    check(0 <= hits <= n and n > 0, "hits", hits, f"must be between 0 and n={n}, and n at least 1")
    interval = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n, unit, extractor)


def mean_of(
    values: Tensor | np.ndarray, *, unit: str = "", extractor: str = "", resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The mean of values (N,) with a percentile bootstrap interval."""
    x = np.asarray(values, dtype=np.float64)
    check(x.ndim == 1 and len(x) >= 2, "values", x.shape, "must be at least 2 for an interval")
    check(
        bool(np.isfinite(x).all()),
        "values",
        float(x[~np.isfinite(x)][0]) if not np.isfinite(x).all() else 0.0,
        "must be finite",
    )
    rng = np.random.default_rng(seed)
    interval = stats.bootstrap(
        (x,), np.mean, n_resamples=resamples, method="percentile", rng=rng, batch=max(1, 10_000_000 // len(x))
    ).confidence_interval
    return Estimate(float(x.mean()), float(interval.low), float(interval.high), len(x), unit, extractor)


def jackknife(leave_out: Callable[[int], float], groups: int, shrink: float = 1.0) -> float:
    """Half the 95 % interval of a smooth statistic, from its values without each group; `shrink` scales the
    variance.
    """
    values = np.array([leave_out(g) for g in range(groups)])
    variance = (groups - 1) / groups * float(((values - values.mean()) ** 2).sum())
    return float(stats.t.ppf(0.975, groups - 1)) * math.sqrt(variance * shrink)
