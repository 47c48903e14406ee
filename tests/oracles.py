"""The losses once more, as plain loops over pairs in float64, written from the papers' formulas and from nothing in
moco/.

Distances are sums of squared differences and features are normalised here by hand, so that neither ‖a - b‖² = 2 -
2a·b nor
any log-sum-exp is taken on trust. Scalars are 0-dim tensors: autograd then differentiates the formula itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(x: Tensor) -> Tensor:
    return torch.stack([row / (row * row).sum() ** 0.5 for row in x])


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum()


def contrastive(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """He et al. 2020, Eq 1: -log[e^{q·k/T} / (e^{q·k/T} + Σ_j e^{q·Q_j/T})], mean over queries. queue [C, K]."""
    total = q.new_zeros(())
    for i in range(len(q)):
        positive = torch.exp((q[i] * k[i]).sum() / temperature)
        below = positive
        for j in range(queue.shape[1]):
            below = below + torch.exp((q[i] * queue[:, j]).sum() / temperature)
        total = total - torch.log(positive / below)
    return total / len(q)


def align(q: Tensor, k: Tensor, alpha: float) -> Tensor:
    """Wang & Isola 2020: mean ‖q - k‖^α."""
    return sum((squared_distance(q[i], k[i]) ** (alpha / 2) for i in range(len(q))), q.new_zeros(())) / len(q)


def uniform(q: Tensor, queue: Tensor, t: float, intra_batch: bool) -> Tensor:
    """Wang & Isola's MoCo: log mean exp(-t‖a - b‖²) over the query-queue pairs and, in one set with them, the pairs
    of queries."""
    terms = [torch.exp(-t * squared_distance(a, queue[:, j])) for a in q for j in range(queue.shape[1])]
    if intra_batch:
        terms += [torch.exp(-t * squared_distance(q[i], q[j])) for i in range(len(q)) for j in range(i)]
    return torch.log(sum(terms, q.new_zeros(())) / len(terms))
