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


def _above_quantile(similarities: list[Tensor], share: float) -> list[Tensor]:
    """Those at or above the m-th largest, m nearest to share · K and at least 1."""
    smallest = sorted((s.item() for s in similarities), reverse=True)[max(1, round(share * len(similarities))) - 1]
    return [s for s in similarities if s.item() >= smallest]


def hard_contrastive(q: Tensor, k: Tensor, queue: Tensor, temperature: float, share: float) -> Tensor:
    """Wang & Liu 2021, Eq 9."""
    total = q.new_zeros(())
    for i in range(len(q)):
        hard = _above_quantile([(q[i] * queue[:, j]).sum() for j in range(queue.shape[1])], share)
        positive = torch.exp((q[i] * k[i]).sum() / temperature)
        total = total - torch.log(positive / (positive + sum(torch.exp(s / temperature) for s in hard)))
    return total / len(q)


def simple(q: Tensor, k: Tensor, queue: Tensor, weight: float, share: float) -> Tensor:
    """Wang & Liu 2021, Eq 3 with λ = weight / (number of negatives), over the nearest alone where share < 1."""
    total = q.new_zeros(())
    for i in range(len(q)):
        negatives = _above_quantile([(q[i] * queue[:, j]).sum() for j in range(queue.shape[1])], share)
        total = total - (q[i] * k[i]).sum() + weight / len(negatives) * sum(negatives)
    return total / len(q)


def hcl(q: Tensor, k: Tensor, queue: Tensor, temperature: float, prior: float, beta: float) -> Tensor:
    """Robinson et al. 2021, Eq 4; Chuang et al. 2020, Eq 8, where β = 0; with their lower bound."""
    length, total = queue.shape[1], q.new_zeros(())
    for i in range(len(q)):
        positive = torch.exp((q[i] * k[i]).sum() / temperature)
        negatives = [torch.exp((q[i] * queue[:, j]).sum() / temperature) for j in range(length)]
        weights = [e**beta for e in negatives]
        mean_weight = sum(weights) / length
        reweighted = sum(w * e for w, e in zip(weights, negatives, strict=True)) / mean_weight
        below = (reweighted - prior * length * positive) / (1 - prior)
        least = length * torch.exp(q.new_tensor(-1 / temperature))
        total = total - torch.log(positive / (positive + (below if below > least else least)))
    return total / len(q)


def supcon(
    q: Tensor, k: Tensor, queue: Tensor, labels: list[int], queue_labels: list[int], temperature: float
) -> Tensor:
    """Khosla et al. 2020, Eq 2 (L_out), positives and contrasts from the own key and the queue."""
    total = q.new_zeros(())
    for i in range(len(q)):
        everyone = [k[i]] + [queue[:, j] for j in range(queue.shape[1])]
        below = sum(torch.exp((q[i] * a).sum() / temperature) for a in everyone)
        same = [k[i]] + [queue[:, j] for j, y in enumerate(queue_labels) if y == labels[i] and y != -1]
        total = total - sum(torch.log(torch.exp((q[i] * p).sum() / temperature) / below) for p in same) / len(same)
    return total / len(q)


def nt_xent(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Chen et al. 2020 (SimCLR), Eq 1, mean over the 2N views."""
    views, n = [*q, *k], len(q)
    total = q.new_zeros(())
    for i in range(2 * n):
        others = [torch.exp((views[i] * views[j]).sum() / temperature) for j in range(2 * n) if j != i]
        positive = torch.exp((views[i] * views[(i + n) % (2 * n)]).sum() / temperature)
        total = total - torch.log(positive / sum(others))
    return total / (2 * n)


def pair_uniform(x: Tensor, t: float) -> Tensor:
    """Wang & Isola 2020, Eq 6: log mean exp(-t‖a - b‖²) over the pairs of one batch."""
    terms = [torch.exp(-t * squared_distance(x[i], x[j])) for i in range(len(x)) for j in range(i)]
    return torch.log(sum(terms, x.new_zeros(())) / len(terms))


def cross_view(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Wang & Isola 2020, STL-10: each view's cross-entropy over the other view's keys, mean of the two."""
    total = q.new_zeros(())
    for queries, keys in ((q, k), (k, q)):
        for i in range(len(q)):
            scores = [torch.exp((queries[i] * keys[j]).sum() / temperature) for j in range(len(q))]
            total = total - torch.log(scores[i] / sum(scores))
    return total / (2 * len(q))


def dclw_weights(q: Tensor, k: Tensor, sigma: float | None) -> list[Tensor | float]:
    """Yeh et al. 2021: w_i = 2 - e^{q_i·k_i/σ} / E_j[e^{q_j·k_j/σ}]; 1 for DCL."""
    if sigma is None:
        return [1.0] * len(q)
    shares = [torch.exp((q[i] * k[i]).sum() / sigma) for i in range(len(q))]
    return [2 - share / (sum(shares) / len(q)) for share in shares]


def decoupled(q: Tensor, k: Tensor, queue: Tensor, temperature: float, sigma: float | None) -> Tensor:
    """Yeh et al. 2021, L_DC and L_DCW, negatives from the queue."""
    total, weights = q.new_zeros(()), dclw_weights(q, k, sigma)
    for i in range(len(q)):
        negatives = sum(torch.exp((q[i] * queue[:, j]).sum() / temperature) for j in range(queue.shape[1]))
        total = total - weights[i] * (q[i] * k[i]).sum() / temperature + torch.log(negatives)
    return total / len(q)


def in_batch_decoupled(q: Tensor, k: Tensor, temperature: float, sigma: float | None) -> Tensor:
    """Yeh et al. 2021, L_DC and L_DCW: each of the 2N views against the 2N - 2 views of other images."""
    views, n, weights = [*q, *k], len(q), dclw_weights(q, k, sigma)
    total = q.new_zeros(())
    for i in range(2 * n):
        others = [torch.exp((views[i] * views[j]).sum() / temperature) for j in range(2 * n) if j % n != i % n]
        positive = (views[i] * views[(i + n) % (2 * n)]).sum() / temperature
        total = total - weights[i % n] * positive + torch.log(sum(others))
    return total / (2 * n)


def moco_v3_ctr(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Chen, Xie & He 2021, Algorithm 1: 2T · cross-entropy of each query against all keys of the batch."""
    total = q.new_zeros(())
    for i in range(len(q)):
        logits = [(q[i] * k[j]).sum() / temperature for j in range(len(k))]
        total = total - logits[i] + torch.log(sum(torch.exp(logit) for logit in logits))
    return 2 * temperature * total / len(q)


def others_columns(k: Tensor, i: int) -> Tensor:
    """The keys of all images but the i-th, as the columns of a queue: [C, N - 1]."""
    return torch.stack([k[j] for j in range(len(k)) if j != i], dim=1)


def batch_keys_uniform(q: Tensor, k: Tensor, t: float, intra_batch: bool) -> Tensor:
    """Log mean e^{-t‖a-b‖²} over pairs of a query and another image's key and, intra_batch, of two queries."""
    n = len(q)
    pairs = [(q[i], k[j]) for i in range(n) for j in range(n) if i != j]
    if intra_batch:
        pairs += [(q[i], q[j]) for i in range(n) for j in range(i)]
    return torch.log(sum(torch.exp(-t * squared_distance(a, b)) for a, b in pairs) / len(pairs))
