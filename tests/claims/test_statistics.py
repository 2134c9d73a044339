"""The audit's statistics against scipy, closed forms and a second way of computing them."""

import numpy as np
import pytest
from scipy import linalg, stats

from kdcdiff.claims import statistics
from kdcdiff.errors import UserError
from kdcdiff.metrics.estimate import Estimate, over_seeds, rank_correlation

RNG = np.random.default_rng(0)


def test_distance_is_the_prediction_interval():
    sample = [1.0, 2.0, 3.0, 4.0]
    found = statistics.distance(9.0, sample)
    unit = np.std(sample, ddof=1) * np.sqrt(1.25)
    assert found.t == pytest.approx((9.0 - 2.5) / unit)
    assert found.high == pytest.approx(2.5 + stats.t.ppf(0.975, 3) * unit)
    assert statistics.distance(found.high, sample).p == pytest.approx(0.05)


def test_distance_refuses_two_values():
    with pytest.raises(UserError, match="sample=2: at least 3 values"):
        statistics.distance(1.0, [1.0, 2.0])


def test_separations_are_all_pairs():
    assert statistics.separations([0.0, 3.0, 4.0], [3.0, 4.0, 0.0]) == pytest.approx([0.6, 4 / 3, 0.25])


def test_fid_is_the_textbook_formula():
    """Against the square root of the covariances' product, in float64."""
    x, y = RNG.standard_normal((60, 8)), 1.5 * RNG.standard_normal((50, 8)) + 0.3
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(linalg.sqrtm(a @ b)))
    assert statistics.fid(x, y) == pytest.approx(expected, rel=1e-6)


def test_fid_of_a_set_with_itself_is_zero_and_of_a_shifted_one_the_shift():
    x = RNG.standard_normal((40, 6))
    assert statistics.fid(x, x) == pytest.approx(0, abs=1e-9)
    assert statistics.fid(x, x + 2) == pytest.approx(6 * 4)


def test_kid_is_the_unbiased_mean_over_pairs():
    x, y = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3))
    kernel = lambda p, q: (p @ q / 3 + 1) ** 3  # noqa: E731
    pairs = [[(p, q) for i, p in enumerate(s) for j, q in enumerate(s) if i != j] for s in (x, y)]
    within = [np.mean([kernel(p, q) for p, q in listed]) for listed in pairs]
    across = np.mean([kernel(p, q) for p in x for q in y])
    assert statistics.kid(x, y) == pytest.approx(sum(within) - 2 * across)


def test_a_perfect_model_has_fid_and_no_kid():
    few, kid_few = statistics.perfect_model(20, "falling", dimensions=128, repeats=40, seed=0)
    many, _ = statistics.perfect_model(200, "falling", dimensions=128, repeats=4, seed=0)
    assert few.mean() > 2 * many.mean() > 0
    assert abs(kid_few.mean()) < 3 * kid_few.std(ddof=1) / np.sqrt(40)


def test_a_perfect_model_is_the_same_for_the_same_seed():
    first = statistics.perfect_model(10, "flat", dimensions=32, repeats=3, seed=1)
    again = statistics.perfect_model(10, "flat", dimensions=32, repeats=3, seed=1)
    other = statistics.perfect_model(10, "flat", dimensions=32, repeats=3, seed=2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_spectrum_has_unit_total_and_a_known_name():
    assert statistics.spectrum("falling", 7).sum() == pytest.approx(1)
    with pytest.raises(UserError, match="spectrum='steep': flat or falling"):
        statistics.spectrum("steep", 7)


def test_whole_numbers_are_counted_among_decimals_only():
    hits, total, chance = statistics.whole(["1.00", "2.50", "3.0000", "4", "5.0"])
    assert (hits, total) == (2, 3)
    assert chance == pytest.approx(stats.binom.sf(1, 3, 0.01))


def test_the_rank_correlation_is_scipys_inside_its_interval():
    a, b = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]
    found = rank_correlation(a, b)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(stats.spearmanr(a, b).statistic)


def test_a_p_value_is_student_s_own():
    sample = [0.4, 1.1, 0.7, 1.9, 0.2]
    p = statistics.p_value(over_seeds(sample), len(sample))
    assert p == pytest.approx(stats.ttest_1samp(sample, 0.0).pvalue)
    assert statistics.p_value(Estimate(1.0, 0.0, 2.0), 9) == pytest.approx(0.05)
    assert statistics.p_value(Estimate(-1.0, -2.0, 0.0)) == pytest.approx(0.05)


def test_what_has_no_interval_has_a_p_of_one():
    assert statistics.p_value(Estimate(1.0, -np.inf, np.inf), 5) == 1.0


def test_holms_correction_is_the_textbooks():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_roots_of_whole_ten_thousandths_are_found_and_chance_finds_few():
    """0.0100, 0.0141, 0.0173 are the roots of one, two and three ten-thousandths."""
    hits, numbers, chance = statistics.roots(["0.0100", "0.0141", "0.0173", "0.0174", "0.0500"], repeats=2000)
    assert (hits, numbers) == (4, 5)
    assert chance < 0.01
    assert statistics.roots(["0.0101", "0.0145", "0.0174"], repeats=200)[0] == 0


def test_two_numbers_alike_are_no_rarity_among_many():
    """The birthday of two decimals: n (n - 1) / 2 pairs over the numbers that could be printed."""
    few = statistics.coincidence([f"{10 + k}.00" for k in range(3)], repeats=20_000)
    assert few == pytest.approx(3 / 201, abs=0.004)
    assert statistics.coincidence([f"{10 + k / 100:.2f}" for k in range(40)], repeats=500) > 0.99
