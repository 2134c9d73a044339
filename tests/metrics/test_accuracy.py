"""The share of images that a classifier reads as what they were asked to be."""

import math

import pytest
import torch
from scipy import stats

from kdcdiff.errors import UserError
from kdcdiff.metrics.accuracy import class_accuracy


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


def test_labels_are_one_for_each_image(sets, classifier):
    with pytest.raises(UserError, match="^labels=2: must be one for each of the 4 images$"):
        class_accuracy(sets[0][:4], [0, 1], classifier)
