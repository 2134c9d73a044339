"""What is drawn of requests by a whole teacher and a cut one, and the real pictures that it is held against."""

import torch

from kdcdiff.data.attributes import shown
from kdcdiff.data.garden import draw
from kdcdiff.data.sources import FIRST
from kdcdiff.experiments import composition


def test_a_cut_teacher_draws_the_same_requests_otherwise(opened):
    garden = opened(sampler_steps=2).shipped("garden")
    asked, whole = composition.requested(garden, 1)
    again, without = composition.requested(garden, 1, network="mid-removed")
    assert asked == again and opened.built["requested"] == 2
    assert whole.images.shape == without.images.shape and not torch.equal(whole.images, without.images)
    assert torch.equal(composition.requested(garden, 1, network="original")[1].images, whole.images)
    assert opened.built["requested"] == 2, "what is there is not drawn again"


def test_real_pictures_of_one_subject_are_held_out_and_as_many_of_each_class(opened):
    source = opened().shipped("garden").source
    real = composition.real_alone(opened().shipped("garden"), 2)
    assert real.labels.tolist() == [k for k in range(len(source.base)) for _ in range(2)]
    for name, images in zip(source.base, real.images.split(2), strict=True):
        drawn = [draw(name, FIRST["test"] + i, source.seed, unseen=True) for i in range(20)]
        alone = [p for p in drawn if shown(p)["arrangement"] == "alone"][:2]
        wanted = torch.stack([torch.from_numpy(p.image).permute(2, 0, 1) for p in alone])
        assert torch.equal(images, wanted)
        assert all(shown(p)["first class"] == name for p in alone)


def test_a_picture_of_flora_is_always_of_one_subject(opened):
    run = opened()
    assert len(composition.real_alone(run, 3)) == 3 * len(run.source.base)
