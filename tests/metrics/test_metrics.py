"""Metrics: parity among the libraries and a float64 scipy reference, hand-computable cases, intervals, bad
input.
"""

import math

import lpips
import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
import torch_fidelity
from scipy import stats
from torchmetrics.functional.multimodal import clip_score as torchmetrics_clip_score
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

import kdcdiff  # noqa: F401  (first: it repairs torchvision)
from kdcdiff.errors import UserError
from kdcdiff.metrics import extractors, fid_kid, similarity
from kdcdiff.metrics.accuracy import accuracy_per_class, class_accuracy, per_class
from kdcdiff.metrics.estimate import mean_of, proportion
from kdcdiff.metrics.published import published
from kdcdiff.models.classifier import Classifier
from kdcdiff.models.pipeline import new_clip, tokenize, train_tokenizer
from kdcdiff.store import Store

CLASSES = tuple("abcdefgh")


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return Classifier(CLASSES, width=8).eval()


@pytest.fixture(scope="module")
def features(judge):
    return extractors.features(judge, "tiny")


@pytest.fixture(scope="module")
def clip():
    tokenizer = train_tokenizer(["a photo of a rose", "a blue tulip"], size=560)
    return extractors.Clip(new_clip(tokenizer, seed=0).eval(), tokenizer, "tiny CLIP")


def draw(n, seed, low=0, high=256):
    """Smooth random images, (n, 3, 64, 64) uint8."""
    coarse = torch.randint(low, high, (n, 3, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return F.interpolate(coarse.float(), size=64, mode="bilinear").to(torch.uint8)


@pytest.fixture(scope="module")
def sets():
    return draw(160, 1), draw(150, 2, 30, 200)


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


# --- parity
# ----------------------------------------------------------------------------------------------------


def fidelity(features, sets, **own):
    class Images(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, i):
            return self.images[i]

    name = extractors.register_with_torch_fidelity(features)
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


def test_inception_score_agrees(judge, sets):
    logits = extractors.logits(judge, "tiny")
    ours = fid_kid.inception_score(sets[0], logits, splits=4, seed=5)
    theirs = InceptionScore(feature=logits, splits=4)
    theirs.update(sets[0])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        mean, deviation = (float(x) for x in theirs.compute())
    assert ours.value == pytest.approx(mean, rel=1e-5)
    assert ours.high - ours.value == pytest.approx(stats.t.ppf(0.975, 3) * deviation / 2, rel=1e-2)


def test_clip_score_agrees_with_torchmetrics_through_its_own_hook(clip, sets):
    images, prompts = sets[0][:6], ["a photo of a rose", "a blue tulip"] * 3
    ours = similarity.clip_score(images, prompts, clip, scale="torchmetrics")
    theirs = torchmetrics_clip_score(list(images), prompts, clip.for_torchmetrics)
    assert ours.value == pytest.approx(float(theirs), rel=1e-4)
    assert ours.extractor == "tiny CLIP" and ours.n == 6


def test_clip_images_are_what_transformers_prepares(clip):
    from PIL import Image
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=64, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image = draw(1, 9)[:, :, :48, :]  # 48 x 64: resized to 64 x 85, then cropped
    theirs = processor(Image.fromarray(image[0].permute(1, 2, 0).numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        wanted = clip.model.visual_projection(clip.model.vision_model(pixel_values=theirs).pooler_output)
    assert float(F.cosine_similarity(clip.images(image), wanted)) > 0.9999


def test_clip_text_is_what_the_pipeline_trains_on(clip):
    ids = tokenize(clip.tokenizer, ["a blue tulip"])
    with torch.no_grad():
        wanted = clip.model.text_projection(clip.model.text_model(input_ids=ids).pooler_output)
    assert torch.allclose(clip.texts(["a blue tulip"]), wanted, atol=1e-6)


def test_the_three_clip_scales(clip, sets):
    images, prompts = sets[0][:8], ["a blue tulip"] * 8
    cosine = similarity.clip_cosines(images, prompts, clip)
    assert similarity.clip_score(images, prompts, clip).value == pytest.approx(float(cosine.mean()))
    assert similarity.clip_score(images, prompts, clip, scale="torchmetrics").value == pytest.approx(
        100 * float(cosine.mean()), rel=1e-6
    )
    assert similarity.clip_score(images, prompts, clip, scale="clipscore").value == pytest.approx(
        2.5 * float(cosine.clamp(min=0).mean()), rel=1e-6, abs=1e-9
    )


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    """LPIPS with random weights, in a folder as the published one would lie."""
    torch.manual_seed(3)
    network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    for name, parameter in network.named_parameters():
        if name.startswith("lin"):
            parameter.data.abs_()
    return network.eval(), published_folder(
        tmp_path_factory.mktemp("alex"), "lpips-alex.safetensors", network.state_dict()
    )


def published_folder(folder, file, state):
    import hashlib
    import json

    from safetensors.torch import save_file

    save_file({name: value.clone().contiguous() for name, value in state.items()}, folder / file)
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "checksums.json").write_text(json.dumps({file: digest}))
    return folder


def test_lpips_is_the_lpips_package_s_with_its_input_range(alex, sets):
    network, folder = alex
    ours = published("lpips-alex", folder)
    a, b = sets[0][:3], sets[1][:3]
    with torch.no_grad():
        theirs = network(a.float() / 255, b.float() / 255, normalize=True).flatten()
    assert torch.allclose(ours(a, b), theirs, rtol=1e-5) and theirs.min() > 0
    assert similarity.lpips_paired(a, b, ours).value == pytest.approx(float(theirs.mean()), rel=1e-5)


def test_the_in_domain_distance_by_hand(judge, sets):
    ours = extractors.perceptual(judge)
    a, b = sets[0][:2], sets[1][:2]
    total = torch.zeros(2)
    x, y = (s.float() / 127.5 - 1 for s in (a, b))
    with torch.no_grad():
        for layer in judge.body:
            if isinstance(layer, torch.nn.MaxPool2d):
                total += ((x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)) ** 2).sum(1).mean((1, 2))
            x, y = layer(x), layer(y)
    assert torch.allclose(ours(a, b), total, rtol=1e-4)
    assert ours(a, a).abs().max() == 0 and "unlearned" in ours.name


# --- cases known by hand
# ---------------------------------------------------------------------------------------


def gaussian(n, dim, seed, shift=0.0, scale=1.0):
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift
    return fid_kid.of_rows(rows, "numbers")


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


def test_inception_score_at_its_ends():
    certain = torch.eye(4).repeat(10, 1) * 60  # four classes, evenly, each certain

    class Given(torch.nn.Module):
        num_features, name = 4, "given"

    given = fid_kid.of_rows(certain[torch.randperm(40, generator=torch.Generator().manual_seed(0))], "given")
    assert fid_kid.inception_score(given, Given(), splits=2).value == pytest.approx(4, rel=0.1)
    unsure = fid_kid.of_rows(torch.zeros(40, 4), "given")
    assert fid_kid.inception_score(unsure, Given(), splits=2).value == pytest.approx(1)


def test_image_similarity_is_the_mean_over_all_pairs():
    a, b = gaussian(5, 6, 0), gaussian(7, 6, 1)
    pairs = [float(F.cosine_similarity(x, y, dim=0)) for x in a.rows for y in b.rows]
    assert similarity.image_similarity(a, b).value == pytest.approx(np.mean(pairs), rel=1e-6)


def test_the_four_readings_of_lpips(judge, features, sets):
    network = extractors.perceptual(judge)
    a, b = sets[0][:30], sets[1][:30]
    assert similarity.lpips_paired(a, a, network).value == 0
    assert similarity.lpips_cross(a, a, network, pairs=50).value > 0  # pairs are random, not each image with itself
    assert similarity.lpips_diversity(a[:1].expand(9, -1, -1, -1), network, pairs=20).value == 0
    assert similarity.lpips_diversity(a, network, pairs=50).value > 0
    copies = torch.cat([a[4:7], b[:1]])
    nearest, which = similarity.lpips_nearest(copies, a, network, features)
    assert which[:3].tolist() == [4, 5, 6]
    apart, _ = similarity.lpips_nearest(b[:4], a, network, features)
    assert nearest.value < apart.value
    exact, _ = similarity.lpips_nearest(b[:4], a, network, features, candidates=30)
    by_hand = [float(network(b[i : i + 1].expand(30, -1, -1, -1), a).min()) for i in range(4)]
    assert exact.value == pytest.approx(np.mean(by_hand), rel=1e-5) and exact.value <= apart.value + 1e-6


# --- accuracy and intervals
# ------------------------------------------------------------------------------------


class Brightness(torch.nn.Module):
    """Class 1 where the image is bright."""

    name = "brightness"

    def forward(self, images):
        bright = images.float().mean((1, 2, 3)) / 255
        return torch.stack([0.5 - bright, bright - 0.5], 1)


def test_class_accuracy_and_wilson():
    images = torch.cat(
        [torch.full((8, 3, 64, 64), 250, dtype=torch.uint8), torch.full((2, 3, 64, 64), 3, dtype=torch.uint8)]
    )
    found = class_accuracy(images, torch.ones(10, dtype=torch.long), Brightness())
    assert (found.value, found.n, found.extractor) == (0.8, 10, "brightness")
    z, p, n = stats.norm.ppf(0.975), 0.8, 10
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n),
    )
    assert found.interval == pytest.approx((centre - half, centre + half), rel=1e-9)
    assert class_accuracy(images[:8], [1] * 8, Brightness()).high == 1.0
    labels = torch.tensor([1] * 6 + [0] * 4)
    per = accuracy_per_class(images, labels, Brightness(), ("dark", "bright", "absent"))
    assert {name: (e.value, e.n) for name, e in per.items()} == {"dark": (0.5, 4), "bright": (1.0, 6)}


def covered(estimates, truth):
    return np.mean([e.low <= truth <= e.high for e in estimates])


def test_intervals_cover_what_they_should():
    rng = np.random.default_rng(0)
    assert covered([proportion(int(rng.binomial(50, 0.9)), 50) for _ in range(400)], 0.9) > 0.9
    means = [mean_of(rng.exponential(size=60), resamples=200, seed=s) for s in range(150)]
    assert 0.85 < covered(means, 1.0) < 0.99
    apart = [
        fid_kid.kid(gaussian(80, 4, 2 * s, shift=0.5), gaussian(80, 4, 2 * s + 1), subsets=1, subset_size=80)
        for s in range(60)
    ]
    truth = np.mean([e.value for e in apart])
    assert covered(apart, truth) > 0.85 and np.mean([e.high - e.low for e in apart]) < 6 * np.std(
        [e.value for e in apart]
    )


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


# --- streaming and caching
# -------------------------------------------------------------------------------------


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


def test_real_statistics_are_cached_in_the_store(features, judge, sets, tmp_path):
    said = []
    store = Store(tmp_path, say=said.append)
    first = fid_kid.cached(store, sets[1], features)
    second = fid_kid.cached(store, sets[1], features)
    assert [line.split()[0] for line in said] == ["built"], "the second call computes nothing"
    assert torch.equal(first.rows, second.rows) and second.n == 150 and second.extractor == "tiny"
    fid_kid.cached(store, sets[0], features)
    torch.manual_seed(9)
    fid_kid.cached(
        store, sets[1], extractors.features(Classifier(CLASSES, width=8), "tiny")
    )  # other weights, same name
    assert [line.split()[0] for line in said[1:]] == ["built", "built"]


def test_per_class_variants(features, sets):
    labels = torch.arange(160) % 3, torch.arange(150) % 2
    found = per_class(
        fid_kid.kid,
        sets[0],
        labels[0],
        sets[1],
        labels[1],
        ("rose", "tulip", "iris"),
        features,
        subsets=3,
        subset_size=10,
    )
    assert list(found) == ["rose", "tulip"]
    alone = fid_kid.kid(sets[0][labels[0] == 1], sets[1][labels[1] == 1], features, subsets=3, subset_size=10)
    assert found["tulip"] == alone


# --- bad input
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call,line",
    [
        (
            lambda a, f, c, j: fid_kid.kid(a[:30], a[:20], f, subset_size=25),
            "subset_size=25: must be between 2 and 20",
        ),
        (lambda a, f, c, j: fid_kid.kid(a[:3], a, f), "images=3: must be at least 4"),
        (
            lambda a, f, c, j: fid_kid.fid(a[:100], a, f),
            "generated=100: must be more than 128 images for FID",
        ),
        (lambda a, f, c, j: fid_kid.fid_infinity(a[:130], a[:129], f), "images=129"),
        (lambda a, f, c, j: fid_kid.inception_score(a[:10], f, splits=10), "splits=10"),
        (lambda a, f, c, j: fid_kid.fid(a, a), "extractor=None: is needed where generated are images"),
        (
            lambda a, f, c, j: fid_kid.kid(gaussian(9, 128, 0), a, f),
            "extractor='numbers': the real images were seen through tiny",
        ),
        (
            lambda a, f, c, j: fid_kid.extract([a[:2], a[:2, :, :32]], f),
            "images=(3, 32, 64): must all have one size",
        ),
        (
            lambda a, f, c, j: fid_kid.extract(a[:2].float() / 255, f),
            "images='(2, 3, 64, 64) torch.float32': must be (N, 3, H, W) uint8",
        ),
        (lambda a, f, c, j: fid_kid.extract([], f), "images=0: must be at least one image"),
        (
            lambda a, f, c, j: similarity.clip_score(a[:4], ["a rose"] * 3, c),
            "prompts=3: fewer than the images, at least 4",
        ),
        (
            lambda a, f, c, j: similarity.clip_score(a[:4], ["a rose"] * 5, c),
            "prompts=5: more than the 4 images",
        ),
        (
            lambda a, f, c, j: similarity.clip_score(a[:4], ["a rose"] * 4, c, scale="percent"),
            "scale='percent': must be one of cosine",
        ),
        (
            lambda a, f, c, j: class_accuracy(a[:4], [0, 1], j),
            "labels=2: must be one for each of the 4 images",
        ),
        (lambda a, f, c, j: similarity.lpips_paired(a[:3], a[:2], extractors.perceptual(j)), "real=2"),
        (lambda a, f, c, j: mean_of(torch.tensor([1.0])), "values=(1,): must be at least 2"),
        (lambda a, f, c, j: mean_of(torch.tensor([1.0, math.nan])), "values=nan: must be finite"),
        (lambda a, f, c, j: published("vgg"), "extractor='vgg': must be one of inception"),
        (
            lambda a, f, c, j: published("inception"),
            "extractor='inception': give a folder that holds inception.safetensors",
        ),
    ],
)
def test_bad_input_is_one_clear_line(sets, features, clip, judge, call, line):
    with pytest.raises(UserError) as error:
        call(sets[0], features, clip, judge)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_published_weights_are_checked(alex, tmp_path):
    import json
    import shutil

    file = "lpips-alex.safetensors"
    folder = shutil.copytree(alex[1], tmp_path / "a")
    (folder / "checksums.json").write_text(json.dumps({file: "0" * 64}))
    with pytest.raises(UserError, match="has the sha256 [0-9a-f]{12}..., not 000000000000"):
        published("lpips-alex", folder)
    (folder / "checksums.json").unlink()
    with pytest.raises(UserError, match="needs checksums.json with the sha256 of lpips-alex.safetensors"):
        published("lpips-alex", folder)
    with pytest.raises(UserError, match="must be a folder that holds lpips-alex.safetensors"):
        published("lpips-alex", tmp_path)
    (tmp_path / "b").mkdir()
    other = published_folder(tmp_path / "b", file, {"lin0.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="do not hold lpips-alex"):
        published("lpips-alex", other)


def test_a_published_clip_loads_from_a_folder(clip, tmp_path, sets):
    import hashlib
    import json

    from transformers import CLIPImageProcessor

    clip.model.save_pretrained(tmp_path)
    clip.tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size=64, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(tmp_path)
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "checksums.json").write_text(json.dumps({"model.safetensors": digest}))
    loaded = published("clip-vit-b-32", tmp_path)
    assert loaded.name == "clip-vit-b-32"
    assert torch.equal(loaded.images(sets[0][:2]), clip.images(sets[0][:2]))
    assert torch.allclose(loaded.texts(["a blue tulip"]), clip.texts(["a blue tulip"]), atol=1e-5)


def test_inception_loads_through_torch_fidelity_without_unpickling(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Bare(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *own, **more):
            return None

    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
    torch.manual_seed(0)
    network = Bare("inception-v3-compat", ["2048"], verbose=False).eval()
    monkeypatch.undo()
    folder = published_folder(tmp_path, "inception.safetensors", network.state_dict())
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    ours = published("inception", folder)
    assert ours.num_features == 2048 and ours.name == "inception"
    image = draw(1, 4)
    with torch.no_grad():
        assert torch.allclose(ours(image), network(image)[0], atol=1e-5)


def test_psnr_by_hand_and_what_it_refuses():
    reference = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    images = reference + torch.tensor([5, 10, 20], dtype=torch.uint8)[:, None, None, None]
    by_hand = [20 * math.log10(255 / d) for d in (5, 10, 20)]
    found = similarity.psnr(images, reference)
    assert found.value == pytest.approx(sum(by_hand) / 3, rel=1e-5) and found.n == 3 and found.unit == "dB"
    with pytest.raises(UserError, match="must be finite"):
        similarity.psnr(reference, reference)
    with pytest.raises(UserError, match="images=.3, 3, 8, 8.: must be .2, 3, 8, 8."):
        similarity.psnr(images, reference[:2])
