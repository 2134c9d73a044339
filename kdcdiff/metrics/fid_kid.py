"""Distances between two sets of images, as an extractor sees them: FID and KID; and the inception score.

    real = extract(real_images, extractors.features(classifier))          # once; `cached` keeps it in a store
    kid(extract(generated, extractor), real)                              # may be negative

The arithmetic is torchmetrics', in float64; here live the streaming, the seeds, the intervals and the conventions,
which differ among libraries and are stated at each function. Images are (N, 3, H, W) uint8, whole or as an iterable of
batches: pass bytes, not floats, since rounding moves FID; read PNG, not JPEG, for the same reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel
from tqdm.auto import tqdm

from kdcdiff.data.image_set import Images, ImageSet, batches, check_images
from kdcdiff.errors import UserError, check
from kdcdiff.metrics.estimate import Estimate, around, jackknife
from kdcdiff.metrics.extractors import Extractor
from kdcdiff.store import Store

KEPT = 20_000  # feature rows kept of a set, beyond that a uniform sample: memory does not grow with n
GROUPS = 20  # of the jackknife behind the intervals of FID and KID
KID_ROWS = 1_000  # rows a set that KID's interval is worked out on: its kernels are square


@dataclass(frozen=True)
class Features:
    """A set of images as an extractor sees it: `rows` (m, D) float32, all or a uniform sample of `n`; sums over all.

    `labels` (m,) int64 are the classes of a set that holds a fixed number of each; None where pictures were drawn
    without looking at their class.
    """

    rows: Tensor
    n: int
    total: Tensor  # (D,) float64
    outer: Tensor  # (D, D) float64, sum of x x^T
    extractor: str
    labels: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, (D, D) float64."""
        return (self.outer - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)

    def only(self, rows: Tensor) -> Features:
        """Make the set of these kept rows (indices or mask)."""
        return of_rows(self.rows[rows], self.extractor, None if self.labels is None else self.labels[rows])

    def save(self, folder: Path) -> None:
        """Write the features to `folder`, as safetensors and JSON."""
        tensors = {"rows": self.rows, "total": self.total, "outer": self.outer}
        tensors |= {} if self.labels is None else {"labels": self.labels}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "features.safetensors")
        (folder / "features.json").write_text(json.dumps({"n": self.n, "extractor": self.extractor}))

    @classmethod
    def load(cls, folder: Path) -> Features:
        """Read features that `save` wrote."""
        fields: dict[str, Any] = load_file(folder / "features.safetensors")
        return cls(**fields, **json.loads((folder / "features.json").read_text()))


def of_rows(rows: Tensor, extractor: str, labels: Tensor | None = None) -> Features:
    """Wrap features already extracted, (n, D), and the classes of a set that holds a fixed number of each, (n,)."""
    double = rows.double()
    return Features(rows, len(rows), double.sum(0), double.T @ double, extractor, labels)


def extract(images: Images | ImageSet | Features, extractor: Extractor, *, progress: bool = False) -> Features:
    """Stream images through an extractor once; memory is bounded by `KEPT` rows, whatever their number.

    An `ImageSet` is taken to hold a fixed number of pictures of each of its classes: its labels stay with its features
    as long as all rows do.

    UserError: images that are none, of several sizes or no bytes; features that are not finite, or of another
    extractor where they are given instead of images.
    """
    if isinstance(images, Features):
        allowed = f"the features were extracted by {images.extractor}"
        check(images.extractor == extractor.name, "extractor", extractor.name, allowed)
        return images
    labels, images = (images.labels, images.images) if isinstance(images, ImageSet) else (None, images)
    parts: list[Tensor] = []
    total, outer = torch.zeros(1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    rng, n = np.random.default_rng(0), 0
    with tqdm(desc="extracting", unit="img", disable=not progress, mininterval=1) as bar:
        for part in batches(images):
            seen = extractor(part).cpu()
            check(bool(seen.isfinite().all()), "features", extractor.name, "must be finite")
            double = seen.double()
            total, outer = total + double.sum(0), outer + double.T @ double
            room = max(0, KEPT - n)
            if room:
                parts.append(seen[:room])
            if len(seen) > room:  # reservoir: image number i replaces a kept one with probability KEPT / (i + 1)
                parts = [torch.cat(parts)] if len(parts) > 1 else parts
                places = (rng.random(len(seen) - room) * (n + room + 1 + np.arange(len(seen) - room))).astype(np.int64)
                for place, row in zip(places.tolist(), seen[room:], strict=True):
                    if place < KEPT:
                        parts[0][place] = row
            n += len(seen)
            bar.update(len(seen))
    return Features(torch.cat(parts), n, total, outer, extractor.name, labels if n <= KEPT else None)


def cached(store: Store, images: ImageSet, extractor: Extractor) -> Features:
    """Extract through the artifact store: the features of real images are computed once for each extractor."""
    pixels = check_images(images.images).contiguous()
    checksum = hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes())
    external = {"images": checksum.hexdigest(), "extractor": extractor.key()}
    made = store.get("real-features", lambda folder: extract(pixels, extractor).save(folder), external=external)
    found = Features.load(made.path)
    return replace(found, labels=images.labels if found.n <= KEPT else None)


def as_features(
    generated: Images | ImageSet | Features, real: Images | ImageSet | Features, extractor: Extractor | None
) -> tuple[Features, Features]:
    """Return the features of both sets, extracted where they are images. UserError: those of two extractors."""
    pair = []
    for name, value in (("generated", generated), ("real", real)):
        if not isinstance(value, Features):
            if extractor is None:
                raise UserError(f"extractor=None: is needed where {name} are images")
            value = extract(value, extractor)
        pair.append(value)
    a, b = pair
    allowed = f"the real images were seen through {b.extractor}"
    check(a.extractor == b.extractor, "extractor", a.extractor, allowed)
    return a, b


# --- distances between distributions -----------------------------------------------------------------------


def frechet(a: Features, b: Features) -> float:
    """Return the Fréchet distance of the Gaussians fitted to two sets, in float64 by torchmetrics' formula."""
    return float(_compute_fid(a.mean, a.covariance, b.mean, b.covariance))


def _not_in(features: Features, group: int, groups: int) -> Tensor:
    """Mark the rows outside a group, which is every `groups`-th row: sets sorted by class stay balanced."""
    return torch.arange(len(features.rows)) % groups != group


def _check_rank(features: Features, name: str, low_rank: bool) -> None:
    dim = len(features.total)
    check(features.n >= 2, name, features.n, "must be at least 2 images for FID")
    allowed = f"must be more than {dim} images for FID: fewer give its {dim}x{dim} covariance no full rank"
    check(low_rank or features.n > dim, name, features.n, allowed)


def fid(
    generated: Images | ImageSet | Features,
    real: Images | ImageSet | Features,
    extractor: Extractor | None = None,
    *,
    low_rank: bool = False,
) -> Estimate:
    """Return the Fréchet distance (Heusel et al. 2017, equation 6), with a jackknife interval over 20 groups a set.

    Biased upwards by about the trace of the covariance over n: compare only at equal n, or read `fid_infinity`; the
    interval is of the sampling error and does not contain that bias. UserError: no more images than features, unless
    `low_rank` allows it.
    """
    a, b = as_features(generated, real, extractor)
    for name, features in (("generated", a), ("real", b)):
        _check_rank(features, name, low_rank)
    value = frechet(a, b)
    groups = min(GROUPS, len(a.rows) // 2, len(b.rows) // 2)
    if groups < 2:
        return Estimate(value, -math.inf, math.inf, a.n, "", a.extractor)
    shrink = max(len(a.rows) / a.n, len(b.rows) / b.n)
    half = jackknife(lambda g: frechet(a.only(_not_in(a, g, groups)), b.only(_not_in(b, g, groups))), groups, shrink)
    return around(value, half, a.n, "", a.extractor)


CURVE = 8, 3  # sample sizes of `fid_curve`, and draws at each but the largest


def fid_curve(
    generated: Images | ImageSet | Features,
    real: Images | ImageSet | Features,
    extractor: Extractor | None = None,
    *,
    seed: int = 0,
    low_rank: bool = False,
) -> list[tuple[int, float]]:
    """Measure FID at growing sample sizes, (n, FID) in order: both sets cut to n, from a third of the smaller up."""
    a, b = as_features(generated, real, extractor)
    most = min(len(a.rows), len(b.rows))
    least = max(most // 3, 2 if low_rank else len(a.total) + 1)
    check(least < most, "images", most, f"must be more than {least} for FID at several sizes")
    generator, (sizes, repeats) = torch.Generator().manual_seed(seed), CURVE
    inverse = torch.linspace(1 / least, 1 / most, sizes, dtype=torch.float64)
    points = []
    for n in sorted({round(1 / float(x)) for x in inverse}):
        for _ in range(repeats if n < most else 1):
            cut = [f.only(torch.randperm(len(f.rows), generator=generator)[:n]) for f in (a, b)]
            points.append((n, frechet(*cut)))
    return points


def fid_infinity(
    generated: Images | ImageSet | Features,
    real: Images | ImageSet | Features,
    extractor: Extractor | None = None,
    *,
    seed: int = 0,
    low_rank: bool = False,
) -> Estimate:
    """Extrapolate FID to infinitely many samples of both sets (after Chong and Forsyth 2020): a line in 1/n, at 0.

    Its interval adds the intercept's standard error to `fid`'s sampling error.
    """
    a, b = as_features(generated, real, extractor)
    n, value = np.array(fid_curve(a, b, seed=seed, low_rank=low_rank)).T
    line = stats.linregress(1 / n, value)
    at_n = fid(a, b, low_rank=low_rank)
    half = math.hypot(at_n.high - at_n.value, 1.96 * float(line.intercept_stderr))
    return around(float(line.intercept), half, a.n, "", a.extractor)


@contextmanager
def _library(seed: int) -> Iterator[None]:
    """Seed torchmetrics, which draws from the global generator, and keep it from warning that it keeps its features."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `.*` will save all extracted features")
        torch.manual_seed(seed)
        yield


def _pair_weights(features: Features, rows: Tensor) -> Tensor:
    """Weigh the pairs of the rows numbered `rows` (m,), so that their mean is that of independent draws: (m, m).

    A set that holds n_c of its n pictures from class c has too few pairs within a class: a share (n_c - 1) / (n - 1) of
    a picture's pairs, where two independent draws have n_c / n. Without labels all pairs weigh the same.
    """
    if features.labels is None:
        return torch.ones(len(rows), len(rows), dtype=torch.float64)
    _, classes, counts = features.labels.unique(return_inverse=True, return_counts=True)
    own, n = classes[rows], len(features.rows)
    within = counts.double() * (n - 1) / (n * (counts - 1).clamp(min=1))
    return torch.where(own[:, None] == own[None, :], within[own][:, None], (n - 1) / n)


def _mmd(a: Tensor, b: Tensor, weights_a: Tensor, weights_b: Tensor) -> float:
    """Return the squared maximum mean discrepancy of rows `a` and `b` (float64), the pairs within each set weighted."""
    return float(
        maximum_mean_discrepancy(poly_kernel(a, a) * weights_a, poly_kernel(a, b), poly_kernel(b, b) * weights_b)
    )


def kid(
    generated: Images | ImageSet | Features,
    real: Images | ImageSet | Features,
    extractor: Extractor | None = None,
    *,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Return the kernel distance (Bińkowski et al. 2018): squared MMD, kernel (x.y / D + 1)^3, mean over subsets.

    Subsets hold `subset_size` random images of each set: by default 1000, as published, or half of the smaller set
    where it is smaller. Unbiased, so negative values are valid: of pictures drawn independently as published, and of a
    set with labels, which holds a fixed number of each class, because its pairs are weighted as independent draws
    would meet. (The published estimator takes such sets for closer than they are.) The interval is a jackknife over up
    to 20 groups, on at most 1000 rows a set, scaled to all; of equal distributions it is a little wide. UserError:
    fewer images than a subset, a class with a single image.
    """
    a, b = as_features(generated, real, extractor)
    fewest = min(len(a.rows), len(b.rows))
    check(fewest >= 4, "images", fewest, "must be at least 4 in each set for KID")
    size = min(1000, fewest // 2) if subset_size is None else subset_size
    check(2 <= size <= fewest, "subset_size", size, f"must be between 2 and {fewest}, the images of the smaller set")
    for features in (a, b):
        alone = 2 if features.labels is None else int(features.labels.unique(return_counts=True)[1].min())
        check(alone > 1, "images", alone, "must be at least 2 of each class for KID")

    def draw(features: Features) -> tuple[Tensor, Tensor]:
        rows = torch.randperm(len(features.rows))[:size]
        return features.rows[rows].double(), _pair_weights(features, rows)

    def without(features: Features, group: int, groups: int) -> tuple[Tensor, Tensor]:
        picked = features.only(torch.linspace(0, len(features.rows) - 1, m).round().long())
        left = picked.only(_not_in(picked, group, groups))
        return left.rows.double(), _pair_weights(left, torch.arange(len(left.rows)))

    def discrepancy(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
        return _mmd(one[0], other[0], one[1], other[1])

    with _library(seed):
        value = float(np.mean([discrepancy(draw(b), draw(a)) for _ in range(subsets)]))
    m = min(fewest, KID_ROWS)
    groups = min(GROUPS, m // 2)
    half = jackknife(lambda g: discrepancy(without(b, g, groups), without(a, g, groups)), groups, m / fewest)
    return around(value, half, a.n, "", a.extractor)


def inception_score(images: Images | Features, extractor: Extractor, *, splits: int = 10, seed: int = 0) -> Estimate:
    """Return exp(mean KL(p(y|x) || p(y))) (Salimans et al. 2016), mean over `splits`, with a t interval over them.

    At most the number of classes. Through an in-domain classifier it says how sure and how varied, never how real.
    UserError: an extractor without class logits, fewer than two images a split.
    """
    seen = extract(images, extractor)
    most = len(seen.rows) // 2
    check(2 <= splits <= most, "splits", splits, f"must be between 2 and half of the {len(seen.rows)} images")
    with _library(seed):
        metric = InceptionScore(feature=nn.Identity(), splits=splits)
        metric.update(extractor.logits(seen.rows).double())
        value, deviation = (float(x) for x in metric.compute())
    half = float(stats.t.ppf(0.975, splits - 1)) * deviation / math.sqrt(splits)
    return around(value, half, seen.n, "", seen.extractor)
