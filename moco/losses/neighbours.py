"""Losses over neighbouring sentences, those of Quick-Thought.

Sources: Logeswaran & Lee, ICLR 2018. Wang & Isola 2020 train sentence encoders with them.
f, g [N, C] are unit features of the same N consecutive sentences from two encoders.
The positives of f_i are g_{i-1} and g_{i+1}; the first and the last sentence of the batch have one.
Every g_j is a key, also g_i.
The batch may be spread over processes, a contiguous part on each (`across`).
Gradients flow to both encoders and through the gathered features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from moco.losses.in_batch import in_batch_uniform_loss
from moco.losses.weighted import Across, LossOutput, OneProcess, check_mix, weighted_sum

NEIGHBOUR_WEIGHTS = {"infonce": (1.0, 0.0, 0.0), "align-uniform": (0.0, 0.9, 0.1)}
"""The weights of the contrastive, alignment and uniformity terms, by `--loss`: those of the paper's best encoders."""


class Neighbours(NamedTuple):
    """Holds the similarities of this process's N sentences to their neighbours.

    The neighbours are those in the batch of all processes.
    """

    everyone: Tensor  # g of all sentences [total, C]
    similarity: Tensor  # f_i·g_{i-1} and f_i·g_{i+1} [2, N]; meaningless where `exists` is False
    exists: Tensor  # whether sentence i has this neighbour: bool [2, N]


def find_neighbours(f: Tensor, g: Tensor, across: Across) -> Neighbours:
    """Returns the features and similarities that the losses need.

    f, g: [N, C].
    """
    everyone, first = across.gather(g)
    total = len(everyone)
    here = torch.arange(first, first + len(f), device=f.device)
    before = (f * everyone[(here - 1).clamp_min(0)]).sum(dim=1)
    after = (f * everyone[(here + 1).clamp_max(total - 1)]).sum(dim=1)
    return Neighbours(everyone, torch.stack([before, after]), torch.stack([here > 0, here < total - 1]))


def neighbour_contrastive_loss(f: Tensor, found: Neighbours, temperature: float) -> Tensor:
    """Returns the cross-entropy of softmax_j(f_i·g_j/τ) with the neighbours.

    Mean over i. The target is ½ at i-1 and i+1, or 1 at the one neighbour of the first and last sentence.
    The softmax is over all sentences of the batch; f_i·g_i counts as a negative.
    """
    positive = (found.similarity * found.exists).sum(dim=0) / found.exists.sum(dim=0)
    return ((f @ found.everyone.t() / temperature).logsumexp(dim=1) - positive / temperature).mean()


def neighbour_align_loss(found: Neighbours, alpha: float = 2.0) -> Tensor:
    """Returns the mean of ‖f_i - g_j‖^α over neighbours.

    The mean is over the 2(total - 1) ordered pairs i, j = i ± 1.
    With several processes each returns the part of its own N sentences.
    The parts are scaled: their mean with weights N is the mean over all pairs.
    For α other than 2 the distance is clamped as in `align_loss`.
    """
    total = len(found.everyone)
    here = found.exists.shape[1]
    distance2 = 2 - 2 * found.similarity
    if alpha != 2:
        distance2 = distance2.clamp_min(torch.finfo(distance2.dtype).eps).pow(alpha / 2)
    return (distance2 * found.exists).sum() / (2 * (total - 1)) * (total / here)


@dataclass
class NeighbourLoss:
    """Computes the weighted sum of contrastive loss, alignment and uniformity.

    contr_w · contrastive + align_w · alignment + unif_w · (uniformity of f + uniformity of g).
    `loss(f, g) -> LossOutput`. A term of weight 0 is not computed. The batch needs at least 2 sentences.
    """

    contr_w: float = 1.0
    temperature: float = 0.075
    align_w: float = 0.0
    align_alpha: float = 2.0
    unif_w: float = 0.0
    unif_t: float = 5.0
    across: Across = field(default_factory=OneProcess)

    def __post_init__(self) -> None:
        check_mix(self)

    def __call__(self, f: Tensor, g: Tensor) -> LossOutput:
        terms = {}
        found = find_neighbours(f, g, self.across)
        if self.contr_w:
            terms["contrastive"] = (self.contr_w, neighbour_contrastive_loss(f, found, self.temperature))
        if self.align_w:
            terms["align"] = (self.align_w, neighbour_align_loss(found, self.align_alpha))
        if self.unif_w:
            of_both = [in_batch_uniform_loss(x, self.unif_t, self.across) for x in (f, g)]
            terms["uniform"] = (self.unif_w, of_both[0] + of_both[1])
        return weighted_sum(terms)
