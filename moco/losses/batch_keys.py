"""The losses of MoCo v3 (`--keys batch`).

A query is compared with the momentum encoder's keys of the whole batch. There is no queue.
q, k [N, C] are this process's queries and keys; k is constant. A query's positive is its own key.
Its negatives are the keys of all other images, on all ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moco.losses.decoupled import DecoupledLoss, positive_weights
from moco.losses.weighted import Across, WeightedLoss


def other_keys(q: Tensor, k: Tensor, scale: float, across: Across) -> tuple[Tensor, int]:
    """Returns each query's scaled similarities to all keys, and their number.

    The similarities are scale · q_i·k_j [N, M], for the M keys of all ranks. They are -∞ at the query's own key.
    """
    keys, first = across.gather(k.detach())
    own = torch.arange(first, first + len(q), device=q.device)
    itself = torch.arange(len(keys), device=q.device) == own[:, None]
    return (scale * q @ keys.t()).masked_fill(itself, -math.inf), len(keys)


def batch_keys_contrastive_loss(q: Tensor, k: Tensor, temperature: float, across: Across) -> Tensor:
    """Returns `ctr` of MoCo v3 (Algorithm 1), the mean over queries.

    It is 2T · cross-entropy of q·k/T over all keys.
    """
    positive = (q * k.detach()).sum(dim=1) / temperature
    negatives = other_keys(q, k, 1 / temperature, across)[0].logsumexp(dim=1)
    return 2 * temperature * (torch.logaddexp(positive, negatives) - positive).mean()


def batch_keys_uniform_loss(q: Tensor, k: Tensor, t: float, intra_batch: bool, across: Across) -> Tensor:
    """Returns the uniformity loss over the keys of the batch.

    It is `moco.losses.uniform_loss` with the keys of the other images instead of the queue.
    It is one number over all ranks. The pairs are the M(M-1) of a query and another image's key.
    intra_batch: adds the M(M-1)/2 pairs of two queries.
    """
    similarities, total = other_keys(q, k, 2 * t, across)
    exponents = [similarities.flatten()]
    count = total * (total - 1)
    if intra_batch:
        everyone, first = across.gather(q)
        here = torch.arange(first, first + len(q), device=q.device)
        counted_before = torch.arange(total, device=q.device)[None, :] <= here[:, None]
        exponents.append((2 * t * q @ everyone.t()).masked_fill(counted_before, -math.inf).flatten())
        count += total * (total - 1) // 2
    return across.logsumexp(torch.cat(exponents).logsumexp(dim=0)) - 2 * t - math.log(count)


@dataclass
class BatchKeysLoss(WeightedLoss):
    """Computes WeightedLoss's three terms over the keys of the batch.

    Weights (1, 0, 0) give MoCo v3. The queue is ignored.
    """

    def contrastive(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return batch_keys_contrastive_loss(q, k, self.temperature, self.across)

    def uniform(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return batch_keys_uniform_loss(q, k, self.unif_t, self.intra_batch, self.across)


@dataclass
class BatchKeysDecoupledLoss(DecoupledLoss):
    """Computes `decoupled_loss` over the keys of the batch; ignores the queue."""

    def value(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        similarity = (q * k.detach()).sum(dim=1)
        negatives = other_keys(q, k, 1 / self.temperature, self.across)[0].logsumexp(dim=1)
        weights = positive_weights(similarity, self.sigma, self.across)
        return (negatives - weights * similarity / self.temperature).mean()
