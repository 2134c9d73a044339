"""FID, KID and the inception score: parity among the libraries and a float64 reference, cases known by hand."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from scipy import stats
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from kdcdiff.data.image_set import ImageSet
from kdcdiff.errors import UserError
from kdcdiff.metrics import extractors, fid_kid
from kdcdiff.models.classifier import Classifier
from kdcdiff.store import Store

from .bridges import register_with_torch_fidelity
from .conftest import CLASSES, gaussian


def scipy_fid(a, b):
    """The reference, straight from the definition: float64, scipy's matrix square root."""
    a, b = a.double().numpy(), b.double().numpy()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def loop_kid(a, b):
    """The unbiased estimator, from its definition, with loops."""
    a, b = a.double().numpy(), b.double().numpy()

    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    m = len(a)
    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(x, y) for x in a for y in b) / m**2


# --- parity --------------------------------------------------------------------------------------------------


def fidelity(features, sets, **own):
    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return self.images[i]

    name = register_with_torch_fidelity(features)
    return torch_fidelity.calculate_metrics(
        input1=Images(sets[0]),
        input2=Images(sets[1]),
        cuda=False,
        feature_extractor=name,
        save_cpu_ram=True,
        verbose=False,
        cache=False,
        **own,
    )


def test_fid_agrees_among_the_libraries_and_scipy(features, sets):
    ours = fid_kid.fid(*sets, features).value
    theirs = FrechetInceptionDistance(feature=features)
    for images, real in zip(sets, (False, True), strict=True):
        for part in images.split(64):
            theirs.update(part, real=real)
    reference = scipy_fid(features(sets[0]), features(sets[1]))
    assert ours == pytest.approx(reference, rel=1e-5)
    assert float(theirs.compute()) == pytest.approx(reference, rel=1e-3)
    assert fidelity(features, sets, fid=True)["frechet_inception_distance"] == pytest.approx(reference, rel=1e-3)


def test_kid_agrees_among_the_libraries_and_the_definition(features, sets):
    a, b = sets[0][:40], sets[1][:40]
    ours = fid_kid.kid(a, b, features, subsets=1, subset_size=40).value  # one subset of everything: no draw
    reference = loop_kid(features(a), features(b))
    theirs = KernelInceptionDistance(feature=features, subsets=1, subset_size=40)
    theirs.update(a, real=False)
    theirs.update(b, real=True)
    fidelitys = fidelity(features, (a, b), kid=True, kid_subsets=1, kid_subset_size=40)[
        "kernel_inception_distance_mean"
    ]
    assert ours == pytest.approx(reference, rel=1e-6)
    assert float(theirs.compute()[0]) == pytest.approx(reference, rel=1e-3, abs=2e-5)
    assert fidelitys == pytest.approx(reference, rel=1e-3, abs=2e-5)  # float32: small differences of numbers near 1


def test_inception_score_agrees(classifier, features, sets):
    logits = extractors.logits(classifier, "tiny")
    ours = fid_kid.inception_score(sets[0], logits, splits=4, seed=5)
    theirs = InceptionScore(feature=logits, splits=4)
    theirs.update(sets[0])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        mean, deviation = (float(x) for x in theirs.compute())
    assert ours.value == pytest.approx(mean, rel=1e-5)
    from_features = fid_kid.inception_score(sets[0], features, splits=4, seed=5)  # the logits follow from the features
    assert from_features.value == pytest.approx(ours.value, rel=1e-5)
    assert ours.high - ours.value == pytest.approx(stats.t.ppf(0.975, 3) * deviation / 2, rel=1e-2)


# --- cases known by hand -------------------------------------------------------------------------------------


def test_fid_of_known_gaussians():
    a = gaussian(500, 3, 0)
    assert fid_kid.frechet(a, a) == pytest.approx(0, abs=1e-9)
    moved = fid_kid.of_rows(a.rows + torch.tensor([3.0, 4.0, 0.0]), "numbers")
    assert fid_kid.frechet(a, moved) == pytest.approx(25, rel=1e-5)  # |3, 4|^2, equal covariances
    doubled = fid_kid.of_rows((a.rows - a.rows.mean(0)) * 2 + a.rows.mean(0), "numbers")
    assert fid_kid.frechet(a, doubled) == pytest.approx(float(a.covariance.trace()), rel=1e-5)  # (2 - 1)^2 trace


def test_kid_of_two_points_a_set():
    a, b = (
        fid_kid.of_rows(torch.tensor(rows), "numbers")
        for rows in ([[0.0], [1.0], [0.0], [1.0]], [[2.0], [2.0], [2.0], [2.0]])
    )
    # k(0,0)=1 k(0,1)=1 k(1,1)=8 k(2,2)=125 k(0,2)=1 k(1,2)=27; pairs of a: 4 of (0,1), 1 of (0,0), 1 of (1,1)
    assert fid_kid.kid(a, b, subsets=1, subset_size=4).value == pytest.approx((4 * 1 + 1 + 8) / 6 + 125 - 2 * 14)


def test_kid_is_unbiased_and_may_be_negative():
    values = [
        fid_kid.kid(gaussian(60, 8, 2 * s), gaussian(60, 8, 2 * s + 1), subsets=1, subset_size=60).value
        for s in range(40)
    ]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(40)


def by_class(each, seed, classes=6, dim=8):
    """Draw `each` rows from every one of some far classes: features with their labels."""
    centres = 3 * torch.randn(classes, dim, generator=torch.Generator().manual_seed(999))
    labels = torch.arange(classes).repeat_interleave(each)
    noise = torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(seed))
    return fid_kid.of_rows(centres[labels] + noise, "numbers", labels)


def test_kid_of_labelled_sets_weighs_pairs_of_classes_as_independent_draws_meet():
    """From the definition: the mean over two classes drawn independently of the mean kernel of two of their rows."""
    a, b = by_class(4, 0, classes=3), by_class(4, 1, classes=3)

    def within(features):
        x, labels = features.rows.double(), features.labels
        kernel = (x @ x.T / x.shape[1] + 1) ** 3
        means = []
        for c in range(3):
            for d in range(3):
                block = kernel[labels == c][:, labels == d]
                means.append(block[~torch.eye(4, dtype=bool)].mean() if c == d else block.mean())
        return float(torch.stack(means).mean())

    cross = float(((a.rows.double() @ b.rows.double().T / 8 + 1) ** 3).mean())
    expected = within(a) + within(b) - 2 * cross
    assert fid_kid.kid(a, b, subsets=1, subset_size=12).value == pytest.approx(expected)
    halves = [fid_kid.kid(a, b, subsets=200, subset_size=6, seed=s).value for s in range(20)]
    assert abs(np.mean(halves) - expected) < 3 * np.std(halves) / math.sqrt(20), "in subsets as well"


def test_kid_of_class_balanced_sets_is_biased_without_their_labels_and_not_with_them():
    pairs = [(by_class(3, 2 * s), by_class(20, 2 * s + 1)) for s in range(60)]
    told = [fid_kid.kid(*pair, subsets=10, seed=s).value for s, pair in enumerate(pairs)]
    bare = [[fid_kid.of_rows(f.rows, "numbers") for f in pair] for pair in pairs]
    untold = [fid_kid.kid(*pair, subsets=10, seed=s).value for s, pair in enumerate(bare)]
    assert abs(np.mean(told)) < 3 * np.std(told) / math.sqrt(60)
    assert np.mean(untold) < -10 * np.std(untold) / math.sqrt(60)
    equal = [(by_class(10, 2 * s), by_class(10, 2 * s + 1)) for s in range(40)]
    assert covered([fid_kid.kid(*pair, subsets=1, subset_size=60) for pair in equal], 0) > 0.85


def test_kid_refuses_a_class_of_one():
    with pytest.raises(UserError, match="images=1: must be at least 2 of each class for KID"):
        fid_kid.kid(by_class(1, 0), by_class(4, 1))


def test_labels_stay_with_the_features_of_an_image_set(features, sets, tmp_path):
    labels = torch.arange(160) % 8
    seen = fid_kid.extract(ImageSet(sets[0], labels, ("",) * 160, CLASSES), features)
    assert torch.equal(seen.labels, labels) and fid_kid.extract(sets[0], features).labels is None
    seen.save(tmp_path)
    assert torch.equal(fid_kid.Features.load(tmp_path).labels, labels)
    assert torch.equal(seen.only(torch.tensor([3, 9])).labels, torch.tensor([3, 1]))


def test_inception_score_at_its_ends():
    certain = torch.eye(4).repeat(10, 1) * 60  # four classes, evenly, each certain

    itself = extractors.Extractor("given", torch.nn.Identity(), lambda model, x: x, lambda model, x: x)
    given = fid_kid.of_rows(certain[torch.randperm(40, generator=torch.Generator().manual_seed(0))], "given")
    assert fid_kid.inception_score(given, itself, splits=2).value == pytest.approx(4, rel=0.1)
    unsure = fid_kid.of_rows(torch.zeros(40, 4), "given")
    assert fid_kid.inception_score(unsure, itself, splits=2).value == pytest.approx(1)


# --- intervals -----------------------------------------------------------------------------------------------


def covered(estimates, truth):
    return np.mean([e.low <= truth <= e.high for e in estimates])


def test_the_interval_of_kid_covers_its_mean():
    apart = [
        fid_kid.kid(gaussian(80, 4, 2 * s, shift=0.5), gaussian(80, 4, 2 * s + 1), subsets=1, subset_size=80)
        for s in range(60)
    ]
    values = [e.value for e in apart]
    assert covered(apart, np.mean(values)) > 0.85
    assert np.mean([e.high - e.low for e in apart]) < 6 * np.std(values)


def test_fid_interval_covers_its_expectation_at_n_and_infinity_removes_the_bias():
    found = [fid_kid.fid(gaussian(300, 8, 2 * s, shift=1.0), gaussian(300, 8, 2 * s + 1)) for s in range(40)]
    assert covered(found, np.mean([e.value for e in found])) >= 0.85
    same = [(gaussian(300, 24, 2 * s), gaussian(300, 24, 2 * s + 1)) for s in range(5)]
    biased = [fid_kid.fid(*pair).value for pair in same]
    extrapolated = [fid_kid.fid_infinity(*pair).value for pair in same]
    assert np.mean(biased) > 0.5 and abs(np.mean(extrapolated)) < 0.15 * np.mean(biased)  # the truth is 0


def test_fid_is_mostly_bias_at_notebook_scale():
    """FACTS: identical Gaussians of 512 dimensions give 132 at 1,000 samples; the bias falls as 1/n."""
    values = {n: fid_kid.frechet(gaussian(n, 512, 0), gaussian(n, 512, 1)) for n in (1000, 2000)}
    assert values[1000] == pytest.approx(132, rel=0.03) and values[2000] == pytest.approx(66, rel=0.03)


def test_the_same_seed_gives_the_same_figures_and_touches_no_global_state(features, sets):
    before = torch.random.get_rng_state()
    first, second = (fid_kid.kid(*sets, features, subsets=5, subset_size=20) for _ in range(2))
    assert first == second and torch.equal(before, torch.random.get_rng_state())
    assert first.value != fid_kid.kid(*sets, features, subsets=5, subset_size=20, seed=1).value


# --- streaming and caching -----------------------------------------------------------------------------------


def test_streaming_equals_whole_and_memory_is_bounded(features, sets, monkeypatch):
    whole = fid_kid.extract(sets[0], features)
    streamed = fid_kid.extract((part for part in sets[0].split(23)), features)
    assert (whole.n, streamed.n) == (160, 160)
    assert torch.allclose(whole.rows, streamed.rows, atol=1e-5) and torch.allclose(
        whole.outer, streamed.outer, rtol=1e-5
    )
    monkeypatch.setattr(fid_kid, "KEPT", 50)
    kept = fid_kid.extract(sets[0].split(23), features)
    assert len(kept.rows) == 50 and kept.n == 160
    assert torch.allclose(kept.covariance, whole.covariance, rtol=1e-4, atol=1e-7)  # moments are of all
    origin = torch.cdist(kept.rows, whole.rows).argmin(1)
    assert len(set(origin.tolist())) == 50 and origin.max() > 100 and origin.min() < 50  # a sample of all, each once
    assert fid_kid.fid(kept, whole, low_rank=True).value == pytest.approx(0, abs=1e-4)


def test_real_statistics_are_cached_in_the_store(features, classifier, sets, tmp_path):
    said = []
    store = Store(tmp_path, say=said.append)
    labelled = [ImageSet(images, torch.arange(len(images)) % 8, ("",) * len(images), CLASSES) for images in sets]
    first = fid_kid.cached(store, labelled[1], features)
    second = fid_kid.cached(store, labelled[1], features)
    assert [line.split()[0] for line in said] == ["built"], "the second call computes nothing"
    assert torch.equal(first.rows, second.rows) and second.n == 150 and second.extractor == "tiny"
    assert torch.equal(second.labels, labelled[1].labels)
    fid_kid.cached(store, labelled[0], features)
    torch.manual_seed(9)
    other = extractors.features(Classifier(CLASSES, width=8), "tiny")  # other weights, same name
    fid_kid.cached(store, labelled[1], other)
    assert [line.split()[0] for line in said[1:]] == ["built", "built"]


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call,line",
    [
        (lambda a, f: fid_kid.kid(a[:30], a[:20], f, subset_size=25), "subset_size=25: must be between 2 and 20"),
        (lambda a, f: fid_kid.kid(a[:3], a, f), "images=3: must be at least 4"),
        (lambda a, f: fid_kid.fid(a[:100], a, f), "generated=100: must be more than 128 images for FID"),
        (lambda a, f: fid_kid.fid_infinity(a[:130], a[:129], f), "images=129"),
        (lambda a, f: fid_kid.inception_score(a[:10], f, splits=10), "splits=10"),
        (
            lambda a, f: fid_kid.inception_score(a[:10], extractors.Extractor("bare", f.model, f.read), splits=2),
            "extractor='bare': has no class logits",
        ),
        (lambda a, f: fid_kid.fid(a, a), "extractor=None: is needed where generated are images"),
        (
            lambda a, f: fid_kid.kid(gaussian(9, 128, 0), a, f),
            "extractor='numbers': the real images were seen through tiny",
        ),
        (
            lambda a, f: fid_kid.extract(gaussian(9, 128, 0), f),
            "extractor='tiny': the features were extracted by numbers",
        ),
        (lambda a, f: fid_kid.extract([a[:2], a[:2, :, :32]], f), "images=(3, 32, 64): must all have one size"),
        (
            lambda a, f: fid_kid.extract(a[:2].float() / 255, f),
            "images='(2, 3, 64, 64) torch.float32': must be (N, 3, H, W) uint8",
        ),
        (lambda a, f: fid_kid.extract([], f), "images=0: must be at least one image"),
    ],
)
def test_bad_input_is_one_clear_line(sets, features, call, line):
    with pytest.raises(UserError) as error:
        call(sets[0], features)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
