"""Both papers' objectives on equal terms: what is compared, what is shared, and what the claims find recorded."""

import contextlib
import re
from dataclasses import replace

import numpy as np
import pytest

from kdcdiff.claims import judging
from kdcdiff.experiments import head_to_head, plan, profiles, tuning
from kdcdiff.experiments.head_to_head import Cell, HeadToHead
from kdcdiff.experiments.run import Run
from kdcdiff.models.variants import VARIANTS
from kdcdiff.training.losses import BKSDMLoss, KDCLoss


def test_objectives_part_ways_in_one_term_each():
    kdc = KDCLoss(alpha=0.5, beta=0.3, gamma=0.2)
    found = {name: head_to_head.tuned(name, kdc) for name in head_to_head.SEARCHED} | head_to_head.PRINTED_WEIGHTS
    assert found["kdc-diff"] == kdc and found["bk-sdm"] == BKSDMLoss(1, 1)
    for whole, parts in head_to_head.REMOVED.items():
        for name in parts:
            before, after = found[whole].weights, found[name].weights
            zeroed = [term for term in before if before[term] and not after[term]]
            assert len(zeroed) == 1, name
            others = {term for term in before if before[term] != after[term]} - set(zeroed)
            assert others <= {"soft", "hard"}, f"{name}: equation (6) gives one's share to the other, and no more"
    assert set(found) == {*head_to_head.MAIN, *(name for parts in head_to_head.REMOVED.values() for name in parts)}


def test_table_4_is_seven_cells_of_which_the_grid_has_most():
    rows, larger = head_to_head.TABLE_4, head_to_head.LARGER
    assert list(rows) == [f"N{k}" for k in range(1, 8)] and len(set(rows.values())) == 7
    beyond = {row for row, cell in rows.items() if cell not in head_to_head.grid()}
    assert beyond == {"N1", "N5", "N7"}, "the rest is trained once for both questions"
    assert {row for pair in head_to_head.EFFECTS.values() for row in pair} < set(rows)
    assert (larger.name, larger.larger) == ("bk-sdm-batch-4-samples-4.bk-sdm-base", larger.samples), "as many steps"
    assert len(head_to_head.cells()) == 4 * (4 + 6) + 3 + 2


def test_what_the_claims_ask_for_is_recorded():
    names = {f"{name}.{end}" for name in head_to_head.recorded(head_to_head.cells())
             for end in head_to_head.ENDPOINTS}  # fmt: skip
    names |= {f"recipe.bk-sdm.{network}.steps_share" for network in head_to_head.NETWORKS}
    asked = {name for claim in judging.load() for name in re.findall(r'"(recipe\.[^"]+)"', claim.check or "")}
    assert asked and asked <= names
    assert {VARIANTS[one].fewer_pairs for one in head_to_head.PRINTED} == {1}
    assert "recipe.bk-sdm.kdc-printed.distance" in names and "recipe.bk-sdm-batch-4.bk-sdm-base.class_accuracy" in names


def test_a_threshold_is_reached_between_points():
    steps, curve = np.array([0, 10, 20]), np.array([1.0, 0.5, 0.4])
    reached = {end: head_to_head.first_below(steps, curve, end) for end in (2.0, 0.75, 0.45, 0.4, 0.3)}
    assert reached == pytest.approx({2.0: 0, 0.75: 5, 0.45: 15, 0.4: 20, 0.3: np.inf})
    curves = {"a": np.stack([curve, curve / 2]), "b": np.array([[1, 0.75], [1, 0.25]])}
    result = HeadToHead(("a", "b"), {}, 1, (), {"a": steps, "b": np.array([0, 20])}, curves)
    assert result.steps_to("a", "b").tolist() == [5, 10] and result.steps_to("b", "a").tolist() == [np.inf, np.inf]


def test_a_pooled_difference_is_a_mean_over_networks_seed_by_seed():
    scores = {"accuracy": np.array([[0.9, 0.7], [0.5, 0.5], [0.3, 0.1], [0.1, 0.1]])}
    result = HeadToHead(("a.x", "b.x", "a.y", "b.y"), scores, 1, (), {}, {})
    found = result.pooled("accuracy", "a", "b", ("x", "y"))
    assert (found.value, found.n) == (pytest.approx(np.mean([(0.4 + 0.2) / 2, (0.2 + 0.0) / 2])), 2)
    assert result.pooled("accuracy", "b", "a", ("y",)).value == pytest.approx(-0.1)
    both = HeadToHead(
        ("a", "b"), {"distance": scores["accuracy"][:2], "accuracy": scores["accuracy"][:2]}, 1, (), {}, {}
    )
    assert {m: e.value for m, e in both.lead("a", "b").items()} == pytest.approx({"distance": -0.3, "accuracy": 0.3})


def test_students_are_paired_by_seed_and_made_once(opened):
    run = opened(ablation_steps=2, ablation_images=1, contest_seeds=2, sampler_steps=1)
    cells = [Cell("task", "bk-sdm-tiny"), Cell("bk-sdm", "bk-sdm-tiny")]
    result = head_to_head.compare(run, [*cells, cells[0]])
    assert result.names == ("task.bk-sdm-tiny", "bk-sdm.bk-sdm-tiny") and opened.built["recipe"] == 4
    assert {m: s.shape for m, s in result.scores.items()} == dict.fromkeys(("accuracy", "error", "distance"), (2, 2))
    assert all(np.isfinite(s).all() for s in result.scores.values())
    starts, ends = ([result.curves[name][:, at] for name in result.names] for at in (0, -1))
    assert np.array_equal(*starts), "from the same weights"
    assert not np.array_equal(*ends) and not np.array_equal(*result.scores["distance"]), "and apart after that"
    assert [result.steps[name].tolist() for name in result.names] == [[0, 1, 2]] * 2


def test_a_network_without_samples_is_measured_as_it_was_cut(opened):
    run = opened(ablation_steps=2, ablation_images=1, contest_seeds=2, sampler_steps=1)
    cut, whole = (Cell("task", network, samples=0) for network in ("bk-sdm-tiny", "original"))
    result = head_to_head.compare(run, [cut, whole, Cell("task", "bk-sdm-tiny")])
    assert result.names == ("untrained.bk-sdm-tiny", "untrained.original", "task.bk-sdm-tiny")
    assert [result.steps[name].tolist() for name in result.names] == [[0], [0], [0, 1, 2]]
    first = [result.curves[name][:, 0] for name in result.names]
    assert np.array_equal(first[0], first[2]) and (first[0] > 0).all() and not first[1].any(), "from the same weights"
    distances = dict(zip(result.names, result.scores["distance"], strict=True))
    assert not distances["untrained.original"].any(), "nothing is nearer to the teacher than itself"
    assert not np.array_equal(distances["untrained.bk-sdm-tiny"], distances["task.bk-sdm-tiny"])


def test_weights_may_be_those_that_another_run_searched_for():
    store = plan._Noting()
    run = Run(profiles.get("smoke"), "garden", 0, "cpu", store)
    pairs = head_to_head.before_and_after(head_to_head.NETWORKS[:2], 3)
    assert [tuple(cell.name for cell in pair) for pair in pairs.values()] == [
        (f"untrained.{name}", f"kdc-diff-longer.{name}") for name in pairs
    ]
    found = tuning.search(replace(run, dataset="flora"), "kdc-diff")
    for cell in (head_to_head.WHOLE, *(own for pair in pairs.values() for own in pair)):
        with contextlib.suppress(FileNotFoundError):
            head_to_head.student(run, cell, 0, found)
    asked = {key: one for key, one in store.asked.items() if one.stage in ("recipe", "search")}
    assert [key for key, one in asked.items() if one.stage == "search"] == [found.key], "none on the garden"
    read = [(one.settings["steps"], one.inputs.get("weights")) for one in asked.values() if one.stage == "recipe"]
    steps = 3 * run.profile.ablation_steps
    assert read == [(0, None), (0, None), (steps, found.key), (0, None), (steps, found.key)]


def test_a_larger_batch_takes_fewer_steps_and_a_part_of_both_objectives_is_one_stage():
    store = plan._Noting()
    run = Run(profiles.get("smoke", ablation_steps=8, ablation_batch=4), "flora", 0, "cpu", store)
    for cell in head_to_head.cells():
        with contextlib.suppress(FileNotFoundError):  # weights that nothing has searched for yet
            head_to_head.student(run, cell, 0)
    asked = [one for one in store.asked.values() if one.stage == "recipe"]
    assert len(asked) == len(head_to_head.cells())
    sizes = {(one.settings["steps"], one.settings["batch"]) for one in asked}
    assert sizes == {(8, 4), (2, 16), (8, 16)}, "equal samples, or equal steps"
    with contextlib.suppress(FileNotFoundError):
        head_to_head.student(run, head_to_head.longer(2)[1], 0)
    (more,) = (one.settings for one in store.asked.values() if one.stage == "recipe" and one not in asked)
    assert (more["objective"], more["steps"], more["batch"]) == ("bk-sdm", 16, 4), "longer, on the same batches"
    with contextlib.suppress(FileNotFoundError):
        head_to_head.student(run, head_to_head.longer(50)[1], 0)
    (*_, most) = (one.settings for one in store.asked.values() if one.stage == "recipe")
    assert (most["steps"], most["points"], more["points"]) == (400, 50, head_to_head.POINTS), "a usual length apart"
    searches = {key: one.settings["candidates"] for key, one in store.asked.items() if one.stage == "search"}
    assert list(searches.values()) == [tuning.CANDIDATES["kdc-diff"], tuning.CANDIDATES["bk-sdm"]]
    for one in asked:
        searched = head_to_head.SEARCHED.get(one.settings["objective"])
        found = searches.get(one.inputs.get("weights", ""))
        assert found == (tuning.CANDIDATES[searched] if searched else None), "whose weights were searched for"
