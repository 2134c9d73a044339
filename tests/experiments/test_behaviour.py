"""How students behave: shared noise, growing guidance and a subject that none of them knew, at the least size."""

import numpy as np
import pytest
import torch

from kdcdiff.data import flora
from kdcdiff.data.attributes import look
from kdcdiff.data.sources import open_source
from kdcdiff.errors import UserError
from kdcdiff.experiments import behaviour
from kdcdiff.metrics import extractors, similarity
from kdcdiff.models.classifier import load_classifier

SMALL = {"contest_seeds": 2, "guided_images": 2, "guidances": (1.0, 3.0), "sampler_steps": 1}


def test_all_models_draw_the_same_prompts_at_every_scale_and_are_made_once(opened):
    run = opened(**SMALL)
    trade, apart = behaviour.trade_off(run), behaviour.style_distances(run)
    assert tuple(trade) == tuple(apart) == behaviour.EVERYONE
    assert {m: own.shape for m, own in trade["small"].items()} == dict.fromkeys(behaviour.MEASURES, (2, 2))
    assert all(np.isfinite(own).all() for measures in trade.values() for own in measures.values())
    assert opened.built["guided"] == 2 * 4 and opened.built["student"] == 2 * 3
    one, other = (behaviour.guided(run, who, 0)[3.0] for who in ("teacher", "base"))
    assert one.captions == other.captions and not torch.equal(one.images, other.images)
    assert not torch.equal(one.images, behaviour.guided(run, "teacher", 1)[3.0].images), "another seed, other noise"


def test_a_model_that_draws_as_its_teacher_does_is_at_no_distance_from_it(opened, monkeypatch):
    run = opened(**SMALL)
    monkeypatch.setattr(behaviour, "guided", lambda run, who, seed, own=behaviour.guided: own(run, "teacher", seed))
    apart = behaviour.style_distances(run)
    assert all((apart[who] == 0).all() for who in behaviour.MODELS) and (apart[behaviour.TEACHER] > 0).all()


def test_every_model_learns_the_subject_of_a_seed(opened):
    run = opened(**SMALL)
    found = behaviour.personalization(run)
    assert tuple(found) == behaviour.EVERYONE and opened.built["personalized"] == 2 * 4
    assert all(own.shape == (2,) and np.isfinite(own).all() for words in found.values() for own in words.values())
    assert (found["teacher"]["subject"] != found["teacher"]["subject before"]).all()
    subject, drawn = behaviour.subject_pictures(run, 0)
    assert len(subject) == behaviour.PICTURES and {who: len(own) for who, own in drawn.items()} == dict.fromkeys(
        behaviour.EVERYONE, len(behaviour.SCENES) * run.profile.subject_images
    )
    assert behaviour.TOKEN in subject.captions[0] and behaviour.TOKEN not in drawn["base"].captions[0]


def test_a_subject_has_one_look_on_several_backgrounds():
    source = open_source("flora")
    pictures = source.subject("iris", 4, 64)
    drawn = [flora.draw("iris", i) for i in range(60)]
    alike = [own for own in drawn if look(own) == look(drawn[0])][:4]
    assert torch.equal(pictures, torch.stack([torch.from_numpy(own.image).permute(2, 0, 1) for own in alike]))
    assert len({own.background for own in alike}) > 1 and {own.colour for own in alike} == {drawn[0].colour}


def test_the_noun_is_the_class_that_a_subject_resembles(opened):
    known = open_source("flora").load("test", ("daisy", "morpho"), 6, 64)
    extractor = extractors.features(load_classifier())
    for name in ("daisy", "morpho"):
        assert behaviour.nearest(open_source("flora").subject(name, 3, 64), known, extractor) == name


def test_spread_is_over_pairs_of_one_prompt():
    network = extractors.Perceptual(
        "", torch.nn.Linear(1, 1), lambda _, a, b: (a.float() - b.float()).abs().mean((1, 2, 3))
    )
    images = torch.tensor([0, 10, 100, 104]).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    found = similarity.lpips_within(images, ["a", "a", "b", "b"], network)
    assert (found.n, found.value) == (2, pytest.approx((10 + 4) / 2))
    with pytest.raises(UserError, match="prompts=4: must have one that two images are of"):
        similarity.lpips_within(images, list("abcd"), network)
