"""Computes the rank correlation of two measures, with a bootstrap interval.

Pure functions on NumPy vectors. Equal values get the mean of their ranks, also in every resample.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from moco.errors import InputError

FEWEST = 5  # with fewer pairs an interval from resampling has no meaning


@dataclass(frozen=True)
class RankCorrelation:
    """Holds Spearman's ρ of `n` pairs, with its percentile bootstrap interval."""

    rho: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.rho:.2f} ({self.confidence:.0%} interval {self.low:.2f} to {self.high:.2f}, n = {self.n})"


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Returns Spearman's ρ: Pearson's correlation of the ranks.

    InputError if lengths differ, a value is not finite, there are fewer than two pairs, or one side is constant.
    """
    x, y = _checked(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError("all values of one side are equal, so they have no order: add encoders that differ")
    return float(_of_ranks(x, y))


def rank_correlation(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """Returns `spearman` with a percentile bootstrap interval.

    Efron & Tibshirani 1993, ch. 13. resamples: draws of pairs. The same seed gives the same interval. A draw in which
    one side is constant has no ρ and is left out. InputError as for `spearman`, and for fewer than five pairs.
    """
    n = len(x)
    if n < FEWEST:
        raise InputError(f"a rank correlation with an interval needs at least {FEWEST} encoders, not {n}")
    rho = spearman(x, y)
    with warnings.catch_warnings():
        # a constant draw gives NaN and a warning; scipy's own interval is then NaN as well
        warnings.simplefilter("ignore")
        drawn = stats.bootstrap(
            _checked(x, y), _of_ranks, paired=True,
            n_resamples=resamples, batch=1000, method="percentile", rng=np.random.default_rng(seed),
        ).bootstrap_distribution  # fmt: skip
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return RankCorrelation(rho, float(low), float(high), n, confidence)


def _of_ranks(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Returns Pearson's correlation of the ranks along `axis`.

    scipy.stats.spearmanrho does the same from scipy 1.17 on.
    """
    return np.asarray(stats.pearsonr(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis=axis).statistic)


def _checked(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, float)
    y = np.asarray(y, float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise InputError(f"a rank correlation needs two or more pairs, not values of shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a value is not finite: leave out encoders without a measure")
    return x, y
