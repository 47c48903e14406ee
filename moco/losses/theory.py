"""Theory of the contrastive loss: gradient shares, and its limit.

For figures and tests; no loss uses this. The limit is that of many negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moco.errors import InputError
from moco.losses.logsumexp import queue_logsumexp


def gradient_shares(similarities: Tensor, temperature: float) -> Tensor:
    """Returns the relative penalty on each negative of an anchor.

    Source: Wang & Liu 2021, §3.2. similarities: [..., K], of an anchor to its K negatives.
    The shares [..., K] sum to 1: r_i(s_ij) = e^{s_ij/τ} / Σ_j e^{s_ij/τ}.
    This equals |∂L/∂s_ij| / |∂L/∂s_ii| of the contrastive loss L.
    τ → 0: all on the nearest negative, or equally on those that tie. τ → ∞: 1/K each, as in the simple loss.
    InputError unless 0 < τ < ∞.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"the temperature must be a positive number, not {temperature:g}")
    wide = similarities.to(torch.promote_types(similarities.dtype, torch.float32))
    # the maximum is subtracted before the division, which could overflow
    return ((wide - wide.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)


@torch.no_grad()
def contrastive_limit(q: Tensor, k: Tensor, population: Tensor, temperature: float) -> Tensor:
    """Returns the limit of InfoNCE - log K for K → ∞.

    Source: Wang & Isola 2020, Thm 1. q, k: [N, C]. The K negatives are drawn from `population` [C, M].
    The limit is -mean q·k/τ + mean_i log mean_j e^{q_i·x_j/τ}.
    The first term is alignment, (L_align(2) - 2)/(2τ).
    The second is an entropy estimate with a von Mises-Fisher kernel. The uniform distribution minimises it.
    The loss of K draws differs from the limit by O(K^-½).
    """
    attraction = (q * k).sum(dim=1).mean() / temperature
    return queue_logsumexp(q, population, 1 / temperature).mean() - math.log(population.shape[1]) - attraction
