"""Losses without a queue (`--moco-k 0`).

The negatives are from the batch of all ranks.
q, k [N, C] are two views of the same images, both from the query encoder. Gradients flow to both.
They also flow through the gathered features of other ranks (`moco.distributed.global_batch`).
So several processes minimise the same loss as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moco.errors import InputError
from moco.losses.weighted import Across, WeightedLoss


def in_batch_contrastive_loss(q: Tensor, k: Tensor, temperature: float, across: Across) -> Tensor:
    """Returns NT-Xent, the mean over this process's 2N views.

    Source: SimCLR (Chen et al. 2020), Eq 1. Each view's positive is the other view of its image.
    Its negatives are the 2·M - 2 views of the other images, where M is the number of images on all ranks.
    """
    all_q, first = across.gather(q)
    all_k, _ = across.gather(k)
    total = len(all_q)
    here = torch.arange(first, first + len(q), device=q.device)
    itself = torch.cat([here, here + total])
    other = torch.cat([here + total, here])
    logits = torch.cat([q, k]) @ torch.cat([all_q, all_k]).t() / temperature
    columns = torch.arange(2 * total, device=q.device)
    return F.cross_entropy(logits.masked_fill(columns == itself[:, None], -math.inf), other)


def cross_view_contrastive_loss(q: Tensor, k: Tensor, temperature: float, across: Across) -> Tensor:
    """Returns InfoNCE with the other view's batch as keys.

    Mean of both directions. Source: Wang & Isola 2020, STL-10.
    ½ mean_i -log[e^{q_i·k_i/T} / Σ_j e^{q_i·k_j/T}], plus the same with q and k exchanged.
    i runs over this process's N images, j over the images of all ranks.
    """
    all_q, first = across.gather(q)
    all_k, _ = across.gather(k)
    own = torch.arange(first, first + len(q), device=q.device)
    of_directions = [F.cross_entropy(x @ keys.t() / temperature, own) for x, keys in ((q, all_k), (k, all_q))]
    return (of_directions[0] + of_directions[1]) / 2


def in_batch_uniform_loss(x: Tensor, t: float, across: Across) -> Tensor:
    """Returns the uniformity over pairs of the batch of all ranks.

    log mean exp(-t‖x_i - x_j‖²) (Wang & Isola 2020, Eq 6, as in their code). It is the same number on every rank.
    Each pair is counted from both sides, so every rank has pairs.
    """
    everyone, first = across.gather(x)
    here = torch.arange(first, first + len(x), device=x.device)
    itself = torch.arange(len(everyone), device=x.device) == here[:, None]
    exponents = (2 * t * x @ everyone.t()).masked_fill(itself, -math.inf).flatten()
    return across.logsumexp(exponents.logsumexp(dim=0)) - 2 * t - math.log(len(everyone) * (len(everyone) - 1))


CONTRASTIVE = {"simclr": in_batch_contrastive_loss, "cross-view": cross_view_contrastive_loss}
"""The contrastive terms without a queue, by --in-batch: negatives of both views, or of the other view alone."""


@dataclass
class InBatchLoss(WeightedLoss):
    """Computes WeightedLoss's three terms without a queue.

    Weights (1, 0, 0) give SimCLR, (0, .98, .96) Wang & Isola's STL-10 loss.
    negatives: a name of CONTRASTIVE, for the contrastive term.
    Uniformity is the mean over both views. The queue is ignored.
    """

    negatives: str = "simclr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negatives not in CONTRASTIVE:
            raise InputError(f"--in-batch must be {' or '.join(CONTRASTIVE)}, not {self.negatives!r}")
        if self.unif_w and not self.intra_batch:
            raise InputError(
                "without a queue, uniformity has only pairs inside the batch: --moco-unif-no-intra-batch needs a"
                " --moco-k of at least 1"
            )

    def contrastive(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return CONTRASTIVE[self.negatives](q, k, self.temperature, self.across)

    def uniform(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        of_views = [in_batch_uniform_loss(x, self.unif_t, self.across) for x in (q, k)]
        return (of_views[0] + of_views[1]) / 2
