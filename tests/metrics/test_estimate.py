"""Estimates: their arithmetic by hand, and whether each kind of interval holds what it should."""

import math

import numpy as np
import pytest
from scipy import stats

from kdcdiff.errors import UserError
from kdcdiff.metrics.estimate import (
    Estimate,
    around,
    as_estimate,
    jackknife,
    mean_of,
    over_seeds,
    proportion,
    rank_correlation,
    ratio,
    written,
)


def covered(estimates, truth):
    return np.mean([e.low <= truth <= e.high for e in estimates])


# --- arithmetic ----------------------------------------------------------------------------------------------


def test_sums_and_differences_combine_the_arms_that_meet():
    a, b = Estimate(5, 4, 8), Estimate(2, 1.5, 2.1)
    assert (a + b).interval == pytest.approx((7 - math.hypot(1, 0.5), 7 + math.hypot(3, 0.1)))
    assert (a - b).interval == pytest.approx((3 - math.hypot(1, 0.1), 3 + math.hypot(3, 0.5)))
    assert (1 + a, a - 1, 9 - a) == (Estimate(6, 5, 9), Estimate(4, 3, 7), Estimate(4, 1, 5))


def test_means_over_the_same_seeds_are_compared_seed_by_seed():
    seeds = np.random.default_rng(0).normal(size=5)  # what a seed brings to both, and a small gain that it hides
    one, other = over_seeds(seeds + [0.10, 0.11, 0.12, 0.10, 0.09]), over_seeds(seeds)
    gain = over_seeds([0.10, 0.11, 0.12, 0.10, 0.09])
    assert (one - other).interval == pytest.approx(gain.interval) and (one - other).n == 5
    assert (one - 0.5 * other).replicates == pytest.approx(np.subtract(one.replicates, seeds / 2))
    assert one.above(other) is True and around(one.value, 1).above(around(other.value, 1)) is None
    fewer = over_seeds(seeds[:4])
    assert one.above(fewer) is None and (one - fewer).n is None, "as many on both sides, or they are independent"
    assert over_seeds([0.5, 0.5]).above(over_seeds([0.4, 0.4])) is None, "seeds that agree to the last digit"


def test_a_factor_scales_and_a_negative_one_turns_the_interval():
    a = Estimate(5, 4, 8)
    assert (2 * a, -a, a / -2) == (Estimate(10, 8, 16), Estimate(-5, -8, -4), Estimate(-2.5, -4, -2))
    assert Estimate(1, -math.inf, math.inf) * 0 == Estimate(0, 0, 0)
    assert (-2 * Estimate(5, 4, 8, n=3)).n == 3


def test_above_is_none_where_the_difference_may_be_zero():
    a = around(5, 1)
    assert a.above(around(3, 1)) is True and around(3, 1).above(a) is False and a.above(around(4, 1)) is None
    assert as_estimate(2).above(1) is True and as_estimate(1).above(1) is False
    assert a.above(over_seeds([1.0])) is None  # one seed decides nothing


def test_how_an_estimate_reads():
    assert f"{Estimate(0.93, 0.9, 0.95):.2f}" == "0.93 [0.90, 0.95]" and f"{as_estimate(3):.1f}" == "3.0"
    assert str(around(1.5, 0.5, 8, "dB", "tiny")) == "1.5 dB [1, 2] (n=8, tiny)"
    assert f"{as_estimate(2)}" == str(as_estimate(2)) == "2"


def test_an_unknown_interval_is_said_in_words():
    one = over_seeds([0.5])
    assert (f"{one:.2f}", str(one)) == ("0.50 (no interval)", "0.5 (no interval, n=1)")
    assert f"{Estimate(1, 0, math.inf):.1f}" == "1.0 (no interval)", "of a ratio"


def test_what_rounds_to_zero_has_no_sign():
    assert f"{Estimate(-0.001, -0.1, -0.002):.2f}" == "0.00 [-0.10, 0.00]"
    said = [written(x, form) for x, form in ((-0.4, ",.0f"), (-0.0001, ".1%"), (-10.0, ".0f"), (-0.01, ".2f"))]
    assert said == ["0", "0.0%", "-10", "-0.01"]


# --- intervals -----------------------------------------------------------------------------------------------


def test_proportions_cover_their_truth():
    rng = np.random.default_rng(0)
    assert covered([proportion(int(rng.binomial(50, 0.9)), 50) for _ in range(400)], 0.9) > 0.9


def test_bootstrap_means_cover_their_truth():
    rng = np.random.default_rng(0)
    assert 0.85 < covered([mean_of(rng.exponential(size=60)) for _ in range(150)], 1.0) < 0.99


def test_means_over_seeds_are_student_s_and_stay_within_bounds():
    values = [0.8, 0.9, 1.0]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert over_seeds(values).interval == pytest.approx((0.9 - half, 0.9 + half))
    assert over_seeds(values, "share", (0, 1)).high == 1 and over_seeds(values, "share").n == 3
    assert over_seeds([0.5]).interval == (-math.inf, math.inf)
    alike = [0.1 + 0.2, 0.3]  # but for rounding
    assert over_seeds(alike).interval == (-math.inf, math.inf) and over_seeds(alike, "share", (0, 1)).interval == (0, 1)


def test_a_ratio_is_the_geometric_mean_of_pairs():
    found = ratio([2.0, 8.0, 4.0], [1.0, 2.0, 2.0])
    logs = np.log([2, 4, 2])
    half = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / math.sqrt(3)
    assert found.value == pytest.approx(16 ** (1 / 3)) and found.n == 3
    assert found.interval == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    assert ratio([2.0], [1.0]).interval == (0, math.inf)


def test_rank_correlations_cover_their_truth():
    rng, found = np.random.default_rng(1), []
    for _ in range(200):
        x = rng.standard_normal(30)
        found.append(rank_correlation(x, 0.7 * x + math.sqrt(1 - 0.49) * rng.standard_normal(30)))
    truth = 6 / math.pi * math.asin(0.7 / 2)  # of two normals with correlation 0.7
    assert 0.9 < covered(found, truth) < 0.99


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(3).standard_normal(12)
    half = stats.t.ppf(0.975, 11) * x.std(ddof=1) / math.sqrt(12)
    assert jackknife(lambda g: np.delete(x, g).mean(), 12) == pytest.approx(half)
    assert jackknife(lambda g: np.delete(x, g).mean(), 12, shrink=0.25) == pytest.approx(half / 2)


@pytest.mark.parametrize(
    "call,line",
    [
        (lambda: proportion(3, 2), "hits=3: must be between 0 and n=2"),
        (lambda: proportion(0, 0), "hits=0: must be between 0 and n=0"),
        (lambda: mean_of([1.0]), "values=(1,): must be at least 2"),
        (lambda: mean_of([1.0, math.nan]), "values=nan: must be finite"),
        (lambda: rank_correlation([1, 2, 3], [1, 3, 2]), "pairs=3: must be at least 4 for an interval"),
    ],
)
def test_bad_input_is_one_clear_line(call, line):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
