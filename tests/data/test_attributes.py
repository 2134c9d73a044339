"""What pictures show in the words of their captions, and prompts that ask for it."""

import pytest

from kdcdiff.data import flora, garden
from kdcdiff.data.attributes import ATTRIBUTES, NONE, requests, shown, targets
from kdcdiff.data.sources import draw_flora, draw_garden
from kdcdiff.errors import UserError


def test_a_picture_of_flora_shows_what_it_is():
    drawn = draw_flora("train", tuple(flora.SPECIES), 2, size=8, progress=False, unseen=True)
    for picture in drawn:
        found = shown(picture)
        assert list(found) == list(ATTRIBUTES["flora"]) and found["class"] == picture.name
        counted = picture.count < len(flora.NUMBERS)
        assert found["parts"] == (NONE if not picture.count else str(picture.count) if counted else "many")
    numbers = targets(drawn, ATTRIBUTES["flora"])
    assert numbers.shape == (40, 4) and numbers[:, 0].tolist() == [k // 2 for k in range(40)]


def test_a_garden_is_told_in_the_order_of_its_places():
    drawn = draw_garden("train", ("rose", "monarch"), 12, size=8, progress=False, pairs=4)
    assert len({picture.plan for picture in drawn}) > 3
    for picture in drawn:
        found = shown(picture)
        subjects = picture.subjects[::-1] if picture.plan in ("right of", "below") else picture.subjects
        assert (found["first class"], found["first colour"]) == (subjects[0].name, subjects[0].colour)
        assert found["second class"] == (subjects[1].name if len(subjects) > 1 else NONE)
    assert targets(drawn, ATTRIBUTES["garden"]).min() >= 0


@pytest.mark.parametrize(
    ("dataset", "plan"), [("flora", "alone"), *(("garden", plan) for plan in ("alone", *garden.TWO))]
)
def test_requests_say_what_they_want_and_half_of_them_is_new(dataset, plan):
    classes = {"flora": flora, "garden": garden}[dataset].BASE[:5]
    asked = requests(dataset, classes, 4, plan=plan, seed=1)
    assert asked == requests(dataset, classes, 4, plan=plan, seed=1) != requests(dataset, classes, 4, plan=plan)
    assert len(asked) == 20 and sum(not request.seen for request in asked) == 10
    for request in asked:
        assert set(request.wanted) <= set(ATTRIBUTES[dataset])
        assert all(request.wanted[k] in request.prompt for k in request.wanted if k != "arrangement")
        assert all(request.wanted[k] in ATTRIBUTES[dataset][k] for k in request.wanted)


def test_what_is_new_to_flora_is_a_colour_that_its_class_never_has():
    for request in requests("flora", flora.BASE, 6):
        assert request.seen == (request.wanted["colour"] in flora.SPECIES[request.wanted["class"]].colours)


def test_who_stands_where_is_what_the_prompt_says():
    request = requests("garden", ("rose", "monarch"), 1, plan="right of")[0]
    first, second = request.wanted["first class"], request.wanted["second class"]
    assert request.prompt.index(second) < request.prompt.index("right of") < request.prompt.index(first)


def test_unknown_sets_and_plans_are_refused():
    with pytest.raises(UserError, match="dataset='photos': must be one of flora, garden"):
        requests("photos", ("rose",), 1)
    with pytest.raises(UserError, match="plan='left of': must be alone"):
        requests("flora", ("rose",), 1, plan="left of")
    with pytest.raises(UserError, match="plan='three': must be one of alone"):
        requests("garden", ("rose",), 1, plan="three")
