"""Distances between two sets of images, as an extractor sees them: FID and KID; and the inception score.

Features are extracted once, streamed, and may be cached in the store; the formulas are torchmetrics', in
float64.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd
from tqdm.auto import tqdm

from kdcdiff.data.image_set import Images, batches, check_images
from kdcdiff.errors import check
from kdcdiff.metrics.estimate import Estimate, around, jackknife
from kdcdiff.metrics.extractors import Extractor
from kdcdiff.store import Artifact, Store

KEPT = 20_000  # feature rows kept of a set, beyond that a uniform sample: memory does not grow with n
GROUPS = 20  # of the jackknife behind the intervals of FID and KID
KID_ROWS = 1_000  # rows a set that KID's interval is worked out on: its kernels are square


# --- features ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """A set of images as an extractor sees it: `rows` (m, D) float32, all or a uniform sample of `n`; sums
    over all.
    """

    rows: Tensor
    n: int
    total: Tensor  # (D,) float64
    outer: Tensor  # (D, D) float64, sum of x x^T
    extractor: str

    @property
    def mean(self) -> Tensor:
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased."""
        return (self.outer - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)

    def only(self, rows: Tensor) -> Features:
        """The set of these kept rows (indices or mask)."""
        return of_rows(self.rows[rows], self.extractor)

    def save(self, folder: Path) -> None:
        tensors = {"rows": self.rows, "total": self.total, "outer": self.outer}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "features.safetensors")
        (folder / "features.json").write_text(json.dumps({"n": self.n, "extractor": self.extractor}))

    @classmethod
    def load(cls, folder: Path) -> Features:
        tensors = load_file(folder / "features.safetensors")
        words = json.loads((folder / "features.json").read_text())
        return cls(tensors["rows"], words["n"], tensors["total"], tensors["outer"], words["extractor"])


def of_rows(rows: Tensor, extractor: str) -> Features:
    """Features already extracted, (n, D)."""
    double = rows.double()
    return Features(rows, len(rows), double.sum(0), double.T @ double, extractor)


def extract(
    images: Images | Features, extractor: Extractor, *, batch_size: int = 256, progress: bool = False
) -> Features:
    """Stream images through an extractor once; memory is bounded by `KEPT` rows, whatever their number."""
    if isinstance(images, Features):
        check(
            images.extractor == extractor.name,
            "extractor",
            extractor.name,
            f"the features were extracted by {images.extractor}",
        )
        return images
    dim, n = extractor.num_features, 0
    parts: list[Tensor] = []
    rows = torch.empty(0, dim)
    total, outer = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    rng = np.random.default_rng(0)
    with tqdm(desc="extracting", unit="img", disable=not progress, mininterval=1) as bar:
        for part in batches(images, batch_size):
            seen = extractor(part).cpu()
            check(bool(seen.isfinite().all()), "features", extractor.name, "must be finite")
            double = seen.double()
            total += double.sum(0)
            outer += double.T @ double
            room = max(0, KEPT - n)
            if room:
                parts.append(seen[:room])
            if len(seen) > room:  # reservoir: image number i replaces a kept one with probability KEPT / (i + 1)
                if parts:
                    rows, parts = torch.cat([rows, *parts]), []
                places = (rng.random(len(seen) - room) * (n + room + 1 + np.arange(len(seen) - room))).astype(np.int64)
                for place, row in zip(places.tolist(), seen[room:], strict=True):
                    if place < KEPT:
                        rows[place] = row
            n += len(seen)
            bar.update(len(seen))
    return Features(torch.cat([rows, *parts]), n, total, outer, extractor.name)


def images_key(images: Tensor) -> str:
    """A checksum of images, for a cache of what was made of them."""
    return hashlib.sha256(
        str(tuple(images.shape)).encode() + check_images(images).contiguous().numpy().tobytes()
    ).hexdigest()


def cached(store: Store, images: Tensor, extractor: Extractor, stage: str = "real-features") -> Features:
    """`extract` through the artifact store: real statistics are computed once for images and extractor."""
    external = {"images": images_key(images), "extractor": extractor.key()}
    artifact: Artifact = store.get(stage, lambda folder: extract(images, extractor).save(folder), external=external)
    return Features.load(artifact.path)


def both(
    generated: Images | Features, real: Images | Features, extractor: Extractor | None
) -> tuple[Features, Features]:
    pair = []
    for name, value in (("generated", generated), ("real", real)):
        if not isinstance(value, Features):
            check(extractor is not None, "extractor", None, f"is needed where {name} are images")
            value = extract(value, extractor)  # type: ignore[arg-type]
        pair.append(value)
    check(
        pair[0].extractor == pair[1].extractor,
        "extractor",
        pair[0].extractor,
        f"the real images were seen through {pair[1].extractor}",
    )
    return pair[0], pair[1]


# --- distances between distributions -----------------------------------------------------------------------


def frechet(a: Features, b: Features) -> float:
    """Fréchet distance of the Gaussians fitted to two sets, in float64 by torchmetrics' formula."""
    return float(_compute_fid(a.mean, a.covariance, b.mean, b.covariance))


def _not_in(features: Features, group: int, groups: int) -> Tensor:
    """Group g is every `groups`-th row from g on: interleaved, so that sets sorted by class stay balanced."""
    return torch.arange(len(features.rows)) % groups != group


def _check_rank(features: Features, name: str, low_rank: bool) -> None:
    dim = len(features.total)
    check(features.n >= 2, name, features.n, "must be at least 2 images for FID")
    check(
        low_rank or features.n > dim,
        name,
        features.n,
        f"must be more than {dim} images for FID: fewer give its {dim}x{dim} covariance no full rank",
    )


def fid(
    generated: Images | Features,
    real: Images | Features,
    extractor: Extractor | None = None,
    *,
    low_rank: bool = False,
) -> Estimate:
    """Fréchet distance (Heusel et al. 2017, equation 6) with a jackknife interval over 20 groups of both
    sets.

    Biased upwards by about the trace of the covariance over n: compare only at equal n, or read
    `fid_infinity`; the interval is of the sampling error and does not contain that bias. UserError: no more
    images than features, unless `low_rank` allows it.
    """
    a, b = both(generated, real, extractor)
    for name, features in (("generated", a), ("real", b)):
        _check_rank(features, name, low_rank)
    value = frechet(a, b)
    groups = min(GROUPS, len(a.rows) // 2, len(b.rows) // 2)
    if groups < 2:
        return Estimate(value, -math.inf, math.inf, a.n, "", a.extractor)
    shrink = max(len(a.rows) / a.n, len(b.rows) / b.n)
    half = jackknife(lambda g: frechet(a.only(_not_in(a, g, groups)), b.only(_not_in(b, g, groups))), groups, shrink)
    return around(value, half, a.n, "", a.extractor)


def fid_curve(
    generated: Images | Features,
    real: Images | Features,
    extractor: Extractor | None = None,
    *,
    sizes: int = 8,
    repeats: int = 3,
    seed: int = 0,
    low_rank: bool = False,
) -> list[tuple[int, float]]:
    """FID at growing sample sizes, (n, FID) in order: both sets are cut to n, which runs from a third of the
    smaller up.
    """
    a, b = both(generated, real, extractor)
    most = min(len(a.rows), len(b.rows))
    least = max(most // 3, 2 if low_rank else len(a.total) + 1)
    check(least < most, "images", most, f"must be more than {least} for FID at several sizes")
    generator = torch.Generator().manual_seed(seed)
    inverse = torch.linspace(1 / least, 1 / most, sizes, dtype=torch.float64)
    points = []
    for n in sorted({round(1 / float(x)) for x in inverse}):
        for _ in range(repeats if n < most else 1):
            cut = [f.only(torch.randperm(len(f.rows), generator=generator)[:n]) for f in (a, b)]
            points.append((n, frechet(*cut)))
    return points


def fid_infinity(
    generated: Images | Features,
    real: Images | Features,
    extractor: Extractor | None = None,
    *,
    seed: int = 0,
    low_rank: bool = False,
) -> Estimate:
    """FID extrapolated to infinitely many samples of both sets (after Chong and Forsyth 2020): a line in 1/n
    at 1/n = 0.

    Its interval adds the intercept's standard error to `fid`'s sampling error.
    """
    a, b = both(generated, real, extractor)
    n, value = np.array(fid_curve(a, b, seed=seed, low_rank=low_rank)).T
    line = stats.linregress(1 / n, value)
    at_n = fid(a, b, low_rank=low_rank)
    half = math.hypot(at_n.high - at_n.value, 1.96 * float(line.intercept_stderr))
    return Estimate(
        float(line.intercept),
        float(line.intercept) - half,
        float(line.intercept) + half,
        a.n,
        "",
        a.extractor,
    )


@contextmanager
def _library(seed: int) -> Iterator[None]:
    """torchmetrics draws subsets and splits from the global generator, and warns that it keeps its
    features.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `.*` will save all extracted features")
        torch.manual_seed(seed)
        yield


def kid(
    generated: Images | Features,
    real: Images | Features,
    extractor: Extractor | None = None,
    *,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Kernel distance (Bińkowski et al. 2018): unbiased MMD^2, kernel (x.y / D + 1)^3, mean over random
    subsets.

    Subsets hold `subset_size` images of each set: by default 1000, as published, or half of the smaller set
    where it is smaller. Unbiased, so negative values are valid. The interval is a jackknife over up to 20
    groups, on at most 1000 rows a set, scaled to all; of equal distributions it is a little wide. UserError:
    fewer images than a subset.
    """
    a, b = both(generated, real, extractor)
    fewest = min(len(a.rows), len(b.rows))
    check(fewest >= 4, "images", fewest, "must be at least 4 in each set for KID")
    size = min(1000, fewest // 2) if subset_size is None else subset_size
    check(
        2 <= size <= fewest,
        "subset_size",
        size,
        f"must be between 2 and {fewest}, the images of the smaller set",
    )
    with _library(seed):
        metric = KernelInceptionDistance(feature=nn.Identity(), subsets=subsets, subset_size=size)
        metric.update(a.rows.double(), real=False)
        metric.update(b.rows.double(), real=True)
        value = float(metric.compute()[0])
    m = min(fewest, KID_ROWS)
    picked = [f.rows[torch.linspace(0, len(f.rows) - 1, m).round().long()].double() for f in (a, b)]
    groups = min(GROUPS, m // 2)
    number = torch.arange(m) % groups
    half = jackknife(lambda g: float(poly_mmd(picked[1][number != g], picked[0][number != g])), groups, m / fewest)
    return around(value, half, a.n, "", a.extractor)


def inception_score(images: Images | Features, logits: Extractor, *, splits: int = 10, seed: int = 0) -> Estimate:
    """exp(mean KL(p(y|x) || p(y))) (Salimans et al. 2016), mean over `splits`, with a t interval over them.

    At most the number of classes. Through an in-domain classifier it says how sure and how varied, never how
    real.
    """
    seen = extract(images, logits)
    check(
        2 <= splits <= len(seen.rows) // 2,
        "splits",
        splits,
        f"must be between 2 and half of the {len(seen.rows)} images",
    )
    with _library(seed):
        metric = InceptionScore(feature=nn.Identity(), splits=splits)
        metric.update(seen.rows.double())
        value, deviation = (float(x) for x in metric.compute())
    half = float(stats.t.ppf(0.975, splits - 1)) * deviation / math.sqrt(splits)
    return around(value, half, seen.n, "", seen.extractor)
