"""The debiased contrastive loss, and HCL with hard negatives.

Both correct for negatives of the query's own class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moco.errors import InputError
from moco.losses.logsumexp import LogSumExp, queue_logsumexp
from moco.losses.weighted import LossOutput, check_positive, full_precision


def debiased_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature: float,
    prior: float,
    beta: float = 0.0,
    logsumexp: LogSumExp = queue_logsumexp,
) -> Tensor:
    """Returns HCL, or with β = 0 the debiased loss.

    Mean over queries. Shapes as in moco/losses/weighted.py.
    Sources: Robinson et al., ICLR 2021, Eq 4; Chuang et al., NeurIPS 2020, Eq 8.
    With pos = e^{q·k/T}, neg_j = e^{q·Q_j/T}, weights w_j = neg_j^β and K negatives: R = Σ w_j·neg_j / mean(w),
    N = max((R - τ⁺·K·pos)/(1 - τ⁺), K·e^{-1/T}), loss = -log(pos/(pos + N)).
    prior: τ⁺, the probability that a negative is of the query's class.
    Computed in logarithms, because e^{1/T} overflows fp32 below T = .0113.
    N has no gradient where it is at its lower bound K·e^{-1/T}.
    """
    length = queue.shape[1]
    positive = (q * k).sum(dim=1) / temperature
    negatives = logsumexp(q, queue, (1 + beta) / temperature)
    if beta:
        negatives = negatives - logsumexp(q, queue, beta / temperature) + math.log(length)
    if prior:
        # log(R - τ⁺·K·pos) = log R + log(1 - e^{-gap})
        gap = negatives - positive - math.log(prior * length)
        least = math.log(length) - 1 / temperature
        shift = math.log1p(-prior)
        bounded = negatives + _log_rest(gap.detach().clamp_min(0)) - shift <= least  # also where R ≤ τ⁺·K·pos
        # gap := 1 where it is not used; the gradient of the logarithm would be 0 · ∞ = NaN there
        corrected = negatives + _log_rest(torch.where(bounded, 1.0, gap)) - shift
        negatives = torch.where(bounded, least, corrected)
    return (torch.logaddexp(positive, negatives) - positive).mean()


def _log_rest(gap: Tensor) -> Tensor:
    """Returns log(1 - e^{-gap})."""
    return torch.log(-torch.expm1(-gap))


@dataclass
class DebiasedLoss:
    """Computes `debiased_loss`.

    The papers' defaults: temperature .5, prior τ⁺ .1, beta 1 for HCL and 0 for the debiased loss.
    """

    temperature: float = 0.5
    prior: float = 0.1
    beta: float = 0.0
    logsumexp: LogSumExp = queue_logsumexp

    def __post_init__(self) -> None:
        check_positive("temperature (--moco-t)", self.temperature)
        if not 0 <= self.prior < 1:
            raise InputError(f"--moco-tau-plus must be at least 0 and less than 1, not {self.prior:g}")
        if not 0 <= self.beta < math.inf:
            raise InputError(f"--moco-beta must be at least 0 and finite, not {self.beta:g}")

    @full_precision
    def __call__(
        self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor | None = None, queue_labels: Tensor | None = None
    ) -> LossOutput:
        loss = debiased_loss(q, k, queue, self.temperature, self.prior, self.beta, self.logsumexp)
        return LossOutput(loss, {})
