"""What the tests of several metrics look through: small random networks, and smooth random images."""

import pytest
import torch
import torch.nn.functional as F

from kdcdiff.metrics import extractors, fid_kid
from kdcdiff.models.classifier import Classifier
from kdcdiff.models.pipeline import new_clip, train_tokenizer

CLASSES = tuple("abcdefgh")


def draw(n, seed, low=0, high=256):
    """Draw smooth random images, (n, 3, 64, 64) uint8."""
    coarse = torch.randint(low, high, (n, 3, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return F.interpolate(coarse.float(), size=64, mode="bilinear").to(torch.uint8)


def gaussian(n, dim, seed, shift=0.0, scale=1.0):
    """Draw features of normal numbers, (n, dim)."""
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift
    return fid_kid.of_rows(rows, "numbers")


@pytest.fixture(scope="session")
def classifier():
    torch.manual_seed(0)
    return Classifier(CLASSES, width=8).eval()


@pytest.fixture(scope="session")
def features(classifier):
    return extractors.features(classifier, "tiny")


@pytest.fixture(scope="session")
def clip():
    tokenizer = train_tokenizer(["a photo of a rose", "a blue tulip"], size=560)
    return extractors.Clip(new_clip(tokenizer, seed=0).eval(), tokenizer, "tiny CLIP")


@pytest.fixture(scope="session")
def sets():
    return draw(160, 1), draw(150, 2, 30, 200)
