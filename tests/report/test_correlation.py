"""Spearman's rank correlation: closed forms, ties, and an interval that means what it says."""

from __future__ import annotations

import numpy as np
import pytest

from moco.errors import InputError
from moco.report.correlation import rank_correlation, spearman


def test_monotone_is_one_whatever_the_scale() -> None:
    x = np.array([3.0, 1.0, 2.0, 10.0, -5.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_closed_form_without_ties() -> None:
    # 1 - 6 Σd² / (n (n² - 1)), with the differences d of ranks
    permutation = np.array([1, 3, 2, 6, 4, 5], float)
    d = np.arange(1, 7) - permutation
    assert spearman(np.arange(6), permutation) == pytest.approx(1 - 6 * (d**2).sum() / (6 * 35))


def test_ties_share_their_mean_rank() -> None:
    # ranks (1.5, 1.5, 3, 4) against (1, 2, 3, 4): covariance 4.5, variances 4.5 and 5
    assert spearman([7, 7, 8, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    # ranks (2, 2, 2, 4) against (1, 2, 3.5, 3.5)
    assert spearman([0, 0, 0, 1], [1, 2, 3, 3]) == pytest.approx(np.corrcoef([2, 2, 2, 4], [1, 2, 3.5, 3.5])[0, 1])


def test_interval_is_that_of_a_plain_loop() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=12).round(1)
    y = (x + draw.normal(size=12)).round(1)
    loop = [spearman(x[row], y[row]) for row in draw.integers(0, 12, (1000, 12))]
    found = rank_correlation(x, y, resamples=4000)
    assert found.rho == spearman(x, y) and found.n == 12
    low, high = np.percentile(loop, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.06) and found.high == pytest.approx(high, abs=0.06)
    assert found.low < found.rho < found.high


def test_interval_repeats_itself_and_narrows_with_confidence() -> None:
    draw = np.random.default_rng(3)
    x, y = draw.normal(size=(2, 20))
    assert rank_correlation(x, y) == rank_correlation(x, y)
    assert rank_correlation(x, y, seed=1) != rank_correlation(x, y)
    wide, narrow = rank_correlation(x, y), rank_correlation(x, y, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_draws_without_an_order_are_left_out() -> None:
    found = rank_correlation([0, 0, 0, 0, 1], [1, 2, 3, 4, 5])  # a third of all draws lack the 1
    assert found.rho == pytest.approx(0.5**0.5)
    assert -1 <= found.low <= found.rho < found.high <= 1


def test_a_perfect_order_has_no_width() -> None:
    found = rank_correlation(range(8), [-v for v in range(8)])
    assert (found.rho, found.low, found.high) == pytest.approx((-1, -1, -1))
    assert str(found) == "-1.00 (95% interval -1.00 to -1.00, n = 8)"


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        ([1, 2], [1, 2, 3], "two or more pairs"),
        ([1], [1], "two or more pairs"),
        ([1, float("nan"), 2], [1, 2, 3], "not finite"),
        ([1, 1, 1], [1, 2, 3], "no order"),
    ],
)
def test_what_has_no_correlation(x: list[float], y: list[float], told: str) -> None:
    with pytest.raises(InputError, match=told):
        spearman(x, y)


def test_too_few_for_an_interval() -> None:
    with pytest.raises(InputError, match="at least 5 encoders, not 4"):
        rank_correlation(range(4), range(4))
