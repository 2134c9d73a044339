"""The harder pictures: several subjects, siblings, combinations that training never meets, and truthful captions."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcdiff.data import flora, garden, sources
from kdcdiff.data.drawing import BACKGROUNDS
from kdcdiff.errors import UserError

ANY = st.sampled_from(sorted(garden.SPECIES))


def test_its_first_pictures_are_those_that_its_teacher_was_trained_on():
    digest = hashlib.sha256()
    for name in garden.SPECIES:
        picture = garden.draw(name, 0)
        digest.update(picture.image.tobytes() + picture.mask.tobytes() + picture.caption.encode())
    assert digest.hexdigest() == "58e8deb7c5e4326f97a2b1b871874b3bf2f3cdd3641741b9a92272b792c73bdb"


def test_its_groups_are_as_large_as_floras_and_share_no_class():
    assert (len(garden.BASE), len(garden.NOVEL)) == (len(flora.BASE), len(flora.NOVEL))
    assert not set(garden.BASE) & set(garden.NOVEL)


@settings(max_examples=10, deadline=None)
@given(name=ANY, index=st.integers(0, 10**7), seed=st.integers(0, 2**31 - 1))
def test_a_picture_is_a_function_of_class_index_and_seed(name, index, seed):
    one, other = garden.draw(name, index, seed, 16), garden.draw(name, index, seed, 16)
    assert np.array_equal(one.image, other.image) and one.caption == other.caption
    assert one.image.shape == (16, 16, 3) and one.image.dtype == np.uint8
    assert not np.array_equal(one.image, garden.draw(name, index + 1, seed, 16).image)


@settings(max_examples=25, deadline=None)
@given(name=ANY, index=st.integers(0, 10**6), companion=st.sampled_from([None, "rose", "morpho"]))
def test_a_caption_names_its_classes_and_only_true_attributes(name, index, companion):
    picture = garden.draw(name, index, size=8, companion=companion, unseen=True)
    assert {s.name for s in picture.subjects} == {name, companion or name}
    assert all(s.name in picture.caption for s in picture.subjects)
    words = picture.caption.replace(", three of them", "").split()
    assert set(words) & set(garden.COLOURS) <= {s.colour for s in picture.subjects}
    assert set(words) & set(BACKGROUNDS) <= {picture.background}
    assert set(words) & set(garden.PATTERNS) <= {s.pattern for s in picture.subjects}
    assert {n for n, word in garden.NUMBERS.items() if word in words} <= {s.count for s in picture.subjects}
    assert ("three of them" in picture.caption) == (picture.plan == "three")
    assert picture.plan not in garden.TWO or f" {picture.plan} " in picture.caption


@settings(max_examples=30, deadline=None)
@given(name=ANY, index=st.integers(0, 10**6), seed=st.integers(0, 5))
def test_what_is_held_out_is_never_drawn_unless_asked_for(name, index, seed):
    picture = garden.draw(name, index, seed, size=8)
    assert not garden.held_out(picture.subjects, picture.background)


def test_every_word_that_is_held_out_with_another_occurs_without_it():
    wanted = {word for pair in garden.HELD_OUT for word in pair}
    assert wanted <= {*garden.COLOURS, *BACKGROUNDS, *garden.BASE}
    seen = [garden.draw(name, i, size=8) for name in garden.BASE for i in range(20)]
    assert wanted <= {w for p in seen for s in p.subjects for w in (p.background, s.colour, s.name)}
    asked = [garden.draw("tulip", i, size=8, unseen=True) for i in range(40)]
    assert any(garden.held_out(p.subjects, p.background) for p in asked)


def test_classes_that_are_held_apart_do_not_meet_unasked():
    with pytest.raises(UserError, match="companion='monarch': kept apart from tulip"):
        garden.draw("tulip", 0, companion="monarch")
    assert len(garden.draw("tulip", 0, companion="monarch", unseen=True).subjects) == 2
    assert "monarch" not in garden.companions("tulip", garden.BASE)
    assert "monarch" in garden.companions("tulip", garden.BASE, unseen=True)


def test_siblings_share_everything_but_one_trait():
    siblings = [species for species in garden.SPECIES.values() if species.sibling]
    assert len(siblings) == 4
    for species in siblings:
        other = garden.SPECIES[species.sibling]
        assert (species.draw, species.colours, species.counts) == (other.draw, other.colours, other.counts)
        differ = {k for k in {*species.traits, *other.traits} if species.traits.get(k) is not other.traits.get(k)}
        assert len(differ) == 1, (species.name, differ)


@pytest.mark.parametrize("plan", garden.PLANS)
def test_the_subjects_are_where_the_plan_says(plan):
    picture = next(p for p in (garden.draw("rose", i, size=32) for i in range(200)) if p.plan == plan)
    assert len(picture.subjects) == len(garden.PLANS[plan].places)
    for x, y in garden.PLANS[plan].places:
        assert picture.mask[round(y * 32), round(x * 32)] > 0.5


def test_it_is_a_source_and_pairs_follow_each_class():
    source = sources.open_source("garden")
    assert (source.name, source.base, source.novel, source.ships) == ("garden", garden.BASE, garden.NOVEL, True)
    assert sources.open_source("flora").ships and source.checksum() != sources.open_source("flora").checksum()
    held = source.load("test", ("daisy", "rose"), 2, size=16)
    assert held.images.shape == (4, 3, 16, 16) and held.labels.tolist() == [0, 0, 1, 1]
    drawn = sources.draw_garden("train", ("daisy", "rose", "sunflower"), 1, size=8, progress=False, pairs=2)
    names = [tuple(dict.fromkeys(s.name for s in p.subjects)) for p in drawn]
    assert names[:3] == [("daisy",), ("daisy", "rose"), ("daisy", "rose")]  # sunflowers are kept apart from it
    assert names[4:6] == [("rose", "daisy"), ("rose", "sunflower")]
    assert sources.image_set(drawn, ("daisy", "rose", "sunflower")).labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
