"""Rank correlation with a bootstrap interval: does one measure of an encoder predict another?

Pure functions on NumPy vectors. Ties have the mean of the ranks they share, here and in every resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moco.errors import InputError

FEWEST = 5  # of fewer, resampling says nothing


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ of `n` pairs, and the percentile bootstrap interval around it."""

    rho: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.rho:.2f} ({self.confidence:.0%} interval {self.low:.2f} to {self.high:.2f}, n = {self.n})"


def _ranks(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ranks of `x` [n] in resamples that hold its entry j `counts[b, j]` times: float64 [B, n].

    An entry's rank is how many lie below it, plus the middle of those that tie with it (itself among them).
    """
    below, tied = (x[:, None] < x).astype(float), (x[:, None] == x).astype(float)
    return counts @ below + (counts @ tied + 1) / 2


def _weighted_correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the rows of a and b [B, n] under `weights` [B, n]: [B], NaN where one is constant."""
    total = weights.sum(1, keepdims=True)
    a, b = (v - (weights * v).sum(1, keepdims=True) / total for v in (a, b))
    covariance, square_a, square_b = ((weights * u * v).sum(1) for u, v in ((a, b), (a, a), (b, b)))
    product = square_a * square_b
    constant = product <= 1e-12 * total[:, 0] ** 2  # ranks lie half a step apart or coincide
    return np.where(constant, np.nan, covariance / np.sqrt(np.where(constant, 1, product)))


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's ρ: Pearson's correlation of the ranks. InputError if lengths differ, a value is not finite, there are
    fewer than two pairs, or one side is constant (it then has no order)."""
    x, y = _checked(x, y)
    once = np.ones((1, len(x)))
    rho = float(_weighted_correlation(_ranks(x, once), _ranks(y, once), once)[0])
    if np.isnan(rho):
        raise InputError("all values of one side are equal, so they have no order to correlate")
    return rho


def rank_correlation(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    """`spearman` and the percentile interval of `resamples` bootstrap draws of pairs (Efron & Tibshirani 1993, ch. 13).

    The same seed gives the same interval. A draw in which one side is constant has no ρ and is left out. InputError as
    `spearman`, and for fewer than five pairs.
    """
    n = len(x)
    if n < FEWEST:
        raise InputError(f"a rank correlation with an interval needs at least {FEWEST} encoders, not {n}")
    rho = spearman(x, y)
    x, y = _checked(x, y)
    draw, found = np.random.default_rng(seed), []
    for start in range(0, resamples, 1000):
        counts = draw.multinomial(n, np.full(n, 1 / n), size=min(1000, resamples - start)).astype(float)
        found.append(_weighted_correlation(_ranks(x, counts), _ranks(y, counts), counts))
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(np.concatenate(found), [tail, 100 - tail])
    return RankCorrelation(rho, float(low), float(high), n, confidence)


def _checked(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise InputError(f"a rank correlation needs two or more pairs, not values of shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a value is not finite: leave out encoders without a measure")
    return x, y
