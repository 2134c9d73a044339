"""The drawn pictures: pure functions of their name, varied, masked, and truthfully captioned."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcdiff.data import flora, sources
from kdcdiff.data.drawing import BACKGROUNDS
from kdcdiff.errors import UserError

ANY = st.sampled_from(sorted(flora.SPECIES))


def test_its_pictures_are_what_the_shipped_weights_were_trained_on():
    """To the last bit: stages are keyed by the checksum of a class's first picture, and stores hold the rest."""
    digest = hashlib.sha256()
    for i, name in enumerate(flora.SPECIES):
        picture = flora.draw(name, 7 * i, seed=i % 2)
        digest.update(picture.image.tobytes() + picture.mask.tobytes() + picture.caption.encode())
    assert digest.hexdigest() == "ac6f1d6d1c03c01baee855d917afb47f63c59b93fd6ccd81e6f0633ff9d60d48"


def test_colours_of_other_classes_come_where_they_are_asked_for():
    own = {flora.draw("monarch", i, size=8).colour for i in range(30)}
    asked = [flora.draw("monarch", i, size=8, unseen=True) for i in range(30)]
    assert own == set(flora.SPECIES["monarch"].colours) and len({p.colour for p in asked}) > 6
    assert all(p.background == flora.draw("monarch", i, size=8).background for i, p in enumerate(asked))


def test_two_groups_that_share_no_class():
    assert len(flora.BASE) >= 12 and len(flora.NOVEL) >= 8
    assert not set(flora.BASE) & set(flora.NOVEL)


@settings(max_examples=15, deadline=None)
@given(name=ANY, index=st.integers(0, 10**7), seed=st.integers(0, 2**31 - 1))
def test_a_picture_is_a_function_of_class_index_and_seed(name, index, seed):
    one, other = flora.draw(name, index, seed), flora.draw(name, index, seed)
    assert np.array_equal(one.image, other.image) and one.caption == other.caption
    assert one.image.shape == (64, 64, 3) and one.image.dtype == np.uint8
    assert not np.array_equal(one.image, flora.draw(name, index + 1, seed).image)
    assert not np.array_equal(one.image, flora.draw(name, index, seed + 1).image)


@settings(max_examples=30, deadline=None)
@given(name=ANY, index=st.integers(0, 10**6))
def test_the_mask_marks_a_subject_of_reasonable_size(name, index):
    mask = flora.draw(name, index).mask
    assert mask.shape == (64, 64) and mask.min() >= 0 and mask.max() <= 1
    assert 0.02 < mask.mean() < 0.8


@settings(max_examples=40, deadline=None)
@given(name=ANY, index=st.integers(0, 10**6))
def test_a_caption_names_the_class_and_only_true_attributes(name, index):
    picture = flora.draw(name, index)
    assert name in picture.caption
    rest = picture.caption.replace(name, "") + " "  # brimstone holds a stone
    said_colours = [c for c in flora.COLOURS if f" {c} " in rest]
    said_backgrounds = [b for b in BACKGROUNDS if b in rest]
    assert set(said_colours) <= {picture.colour}
    assert set(said_backgrounds) <= {picture.background}


def test_the_subject_is_where_the_mask_says():
    """Two draws that differ in nothing but the subject would be ideal; instead: the masked pixels vary more."""
    pictures = [flora.draw("sunflower", i) for i in range(20)]
    contrast = []
    for p in pictures:
        inside, outside = p.image[p.mask > 0.9].astype(float), p.image[p.mask < 0.1].astype(float)
        contrast.append(np.abs(inside.mean(0) - outside.mean(0)).max())
    assert np.median(contrast) > 40


def test_the_mean_picture_of_each_class_does_not_give_the_classes_away():
    """A set that nearest-mean solves has no pose, light or background in it; chance is 1 in 20."""
    train = sources.load_flora("train", tuple(flora.SPECIES), 20, progress=False)
    test = sources.load_flora("test", tuple(flora.SPECIES), 10, progress=False)
    means = torch.stack([train.images[train.labels == k].float().mean(0).flatten() for k in range(20)])
    guess = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    assert (guess == test.labels).float().mean() < 0.5


def test_an_unknown_class_is_refused_by_name():
    with pytest.raises(UserError, match="class='orchid': must be one of daisy"):
        flora.draw("orchid", 0)
