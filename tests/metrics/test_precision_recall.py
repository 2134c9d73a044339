"""Precision and recall from their definition, in cases known by hand; and two eyes that agree, differ or contradict."""

import pytest
import torch

from kdcdiff.data.image_set import ImageSet
from kdcdiff.errors import UserError
from kdcdiff.metrics import extractors, eyes, fid_kid
from kdcdiff.metrics.estimate import around
from kdcdiff.metrics.precision_recall import NEIGHBOURHOOD, precision_recall

from .conftest import CLASSES, draw, gaussian


def covered(rows, others):
    """The share of `rows` within a ball around one of `others`, from the definition, with loops."""
    found = 0
    for row in rows.double():
        for k, other in enumerate(others.double()):
            near = sorted(float((other - own).norm()) for i, own in enumerate(others.double()) if i != k)
            if float((row - other).norm()) <= near[NEIGHBOURHOOD - 1]:
                found += 1
                break
    return found / len(rows)


def test_both_are_what_the_definition_says():
    made, real = gaussian(40, 3, 1, shift=0.8), gaussian(50, 3, 2)
    precision, recall = precision_recall(made, real)
    assert precision.value == pytest.approx(covered(made.rows, real.rows)) and precision.n == 40
    assert recall.value == pytest.approx(covered(real.rows, made.rows)) and recall.n == 50
    assert 0 < recall.low < recall.value < recall.high < 1 and recall.extractor == "numbers"


def test_the_same_pictures_have_all_of_both_and_far_ones_nothing():
    real = gaussian(30, 4, 3)
    assert [share.value for share in precision_recall(real, real)] == [1, 1]
    assert [share.value for share in precision_recall(gaussian(30, 4, 4, shift=50), real)] == [0, 0]


def test_a_model_that_draws_one_thing_is_precise_and_recalls_little():
    real, narrow = gaussian(200, 4, 5), gaussian(200, 4, 6, scale=0.2)
    precision, recall = precision_recall(narrow, real)
    assert precision.low > 0.95 and recall.high < 0.2
    wide = precision_recall(gaussian(200, 4, 6, scale=3), real)
    assert wide.precision.high < recall.high + 0.3 < wide.recall.low, "and the other way round"


def test_too_few_pictures_are_one_line():
    with pytest.raises(UserError, match="generated=3: must be more than 3 images for precision and recall"):
        precision_recall(gaussian(3, 4, 0), gaussian(9, 4, 0))
    with pytest.raises(UserError, match="real=2"):
        precision_recall(gaussian(9, 4, 0), gaussian(2, 4, 0))


def test_two_eyes_see_the_same_pictures(features, clip):
    labels = torch.arange(8).repeat(4)
    sets = {name: ImageSet(draw(32, seed, *span), labels, ("",) * 32, CLASSES)
            for name, seed, span in (("real", 1, (0, 256)), ("near", 2, (0, 256)), ("far", 3, (100, 140)))}  # fmt: skip
    real = sets.pop("real")
    eye = eyes.through(sets, real, features)
    assert list(eye) == ["near", "far"] and all(list(own) == list(eyes.MEASURES) for own in eye.values())
    assert eye["near"]["KID"].value == fid_kid.kid(sets["near"], real, features).value
    assert eye["far"]["KID"].value > eye["near"]["KID"].value
    other = eyes.through(sets, real, extractors.embeddings(clip))
    assert {own["KID"].extractor for own in (*eye.values(), *other.values())} == {"tiny", "tiny CLIP"}
    assert eyes.agreement(eye, eye) == dict.fromkeys(eyes.MEASURES, eyes.Agreement(1, 0, ()))


def test_eyes_contradict_each_other_only_where_both_are_sure():
    def seen(**values):
        return {name: dict.fromkeys(eyes.MEASURES, around(value, 1.0)) for name, value in values.items()}

    one, other = seen(a=0, b=10, c=20), seen(a=5, b=0, c=4.5)
    found = eyes.agreement(one, other)["KID"]
    assert (found.same, found.opposite) == (1, 2), "b and c alone are in the same order"
    assert found.contradicted == (("a", "b"),), "a and c lie within the second eye's intervals"
