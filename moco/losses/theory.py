"""Theory of the contrastive loss: the share of the gradient that each negative gets, and the limit with
infinitely many of them. For figures and tests; no loss is computed from this."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moco.errors import InputError
from moco.losses.logsumexp import queue_logsumexp


def gradient_shares(similarities: Tensor, temperature: float) -> Tensor:
    """Relative penalty r_i(s_ij) = e^{s_ij/τ} / Σ_j e^{s_ij/τ} on each negative of an anchor (Wang & Liu 2021, §3.2).

    similarities [..., K] of an anchor to its K negatives -> shares [..., K] that sum to 1: |∂L/∂s_ij| / |∂L/∂s_ii| of
    the contrastive loss. τ → 0: all on the nearest (equally on those that tie); τ → ∞: 1/K each, as in the simple loss.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"the temperature must be a positive number, not {temperature:g}")
    wide = similarities.to(torch.promote_types(similarities.dtype, torch.float32))
    # the maximum is taken off before the division, which could overflow
    return ((wide - wide.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)


@torch.no_grad()
def contrastive_limit(q: Tensor, k: Tensor, population: Tensor, temperature: float) -> Tensor:
    """lim (InfoNCE - log K) for K → ∞ negatives drawn from `population` [C, M]; q, k [N, C] (Wang & Isola 2020, Thm 1).

    -mean q·k/τ + mean_i log mean_j e^{q_i·x_j/τ}: alignment, (L_align(2) - 2)/(2τ), plus a term that the uniform
    distribution minimises, the entropy estimate of a von Mises-Fisher kernel. The loss of K draws is off by O(K^-½).
    """
    attraction = (q * k).sum(dim=1).mean() / temperature
    return queue_logsumexp(q, population, 1 / temperature).mean() - math.log(population.shape[1]) - attraction
