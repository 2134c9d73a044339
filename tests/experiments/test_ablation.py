"""Students that differ in their loss only: what is compared, how sure one may be, and that it is made once."""

import numpy as np
import pytest
from scipy import stats

from kdcdiff.errors import UserError
from kdcdiff.experiments import ablation, stages
from kdcdiff.metrics.estimate import over_seeds
from kdcdiff.training.losses import BKSDMLoss, KDCLoss


def test_over_seeds_is_students_interval():
    values = np.array([0.1, 0.3, 0.2, 0.6])
    estimate = over_seeds(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert estimate.interval == pytest.approx((low, high)) and estimate.n == 4
    assert np.isinf(over_seeds(values[:1]).low), "one seed says nothing of another"
    assert over_seeds(values, within=(0, 1)).low == 0 > low, "a share is not below zero"


def test_a_gain_pairs_the_seeds():
    scores = {"accuracy": np.array([[0.5, 0.7, 0.9], [0.4, 0.61, 0.79]])}
    result = ablation.Ablation(("a", "b"), scores, 10, ())
    gain = result.gain("accuracy", "a", "b")
    half = stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3)  # of 0.10, 0.09 and 0.11, however far the seeds lie
    assert gain.interval == pytest.approx((0.1 - half, 0.1 + half))
    assert np.isinf(result.gain("accuracy", "a", "a").high), "no scatter says nothing of how differences scatter"
    mean = result.mean("accuracy", "a")
    assert mean.value == pytest.approx(0.7) and mean.high - mean.low > 0.5


def test_a_grid_names_its_cells():
    cells = ablation.grid("alpha", (0.0, 1.0), "beta", (0.5,), KDCLoss(gamma=2.0))
    assert list(cells) == ["alpha=0, beta=0.5", "alpha=1, beta=0.5"]
    assert cells["alpha=1, beta=0.5"] == KDCLoss(alpha=1.0, beta=0.5, gamma=2.0)
    with pytest.raises(UserError, match="alpha=2.0"):
        ablation.grid("alpha", (2.0,), "beta", (0.5,), KDCLoss())


def test_the_compared_objectives_part_ways_in_one_term_each(opened):
    found = ablation.objectives(opened(beta=0.3))
    assert found["task"] == BKSDMLoss(0, 0) and found["task + output"] == BKSDMLoss(1, 0)
    assert found["task + output + feature"] == BKSDMLoss(1, 0.3)
    assert found["task + soft"].weights["hard"] == 0 and found["task + hard"].weights["soft"] == 0


def test_a_network_has_no_distance_to_itself(opened):
    run = opened()
    pipeline, latents = stages.teacher(run), stages.latents(run, "test")
    error, distance = ablation.heldout_errors(pipeline.unet, pipeline.unet, latents, pipeline.scheduler, seed=0)
    assert distance == 0 and 0 < error < 2
    assert ablation.heldout_errors(pipeline.unet, pipeline.unet, latents, pipeline.scheduler, seed=0, batch=7)[1] == 0


def test_a_comparison_is_made_once_and_again_for_another_question(opened):
    run = opened(ablation_steps=2)
    candidates = {"task": BKSDMLoss(0, 0), "total": KDCLoss()}
    result = ablation.compare(run, candidates, seeds=2, steps=2, images=1)
    assert {m: s.shape for m, s in result.scores.items()} == dict.fromkeys(ablation.MEASURES, (2, 2))
    assert all(np.isfinite(s).all() for s in result.scores.values()) and result.n == len(run.source.base)
    assert not np.array_equal(result.scores["error"][0], result.scores["error"][1]), "the objectives differ"
    assert not np.array_equal(result.scores["error"][:, 0], result.scores["error"][:, 1]), "and so do the seeds"
    assert "total.soft.gradient" in result.logs[0][-1] and "task.mse" in result.logs[1][-1]
    built = []
    run.store.on_use = lambda artifact, new: built.append(new)
    again = ablation.compare(run, candidates, seeds=2, steps=2, images=1)
    assert not any(built) and np.array_equal(again.scores["error"], result.scores["error"])
    alone = ablation.compare(run, {"total": KDCLoss()}, seeds=1, steps=2, images=0)
    assert any(built) and np.isnan(alone.scores["accuracy"]).all()
    assert alone.scores["error"][0, 0] == pytest.approx(result.scores["error"][1, 0], rel=1e-5), (
        "company changes nothing"
    )
