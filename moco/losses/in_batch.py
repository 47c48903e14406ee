"""The losses without a queue (`--moco-k 0`): what a query is compared with is the rest of the batch, of all ranks.

q, k [N, C] are two views of the same images, both through the query encoder: gradients flow to both, and through the
gathered features of other ranks (`moco.distributed.global_batch`), so that several processes minimise what one would.
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
    """NT-Xent (SimCLR: Chen et al. 2020, Eq 1), mean over this process's 2N views.

    Each view's positive is the other view of its image; its 2·N - 2 negatives, N over all ranks, are all other views.
    """
    all_q, first = across.gather(q)
    all_k, _ = across.gather(k)
    total = len(all_q)
    here = torch.arange(first, first + len(q), device=q.device)
    itself, other = torch.cat([here, here + total]), torch.cat([here + total, here])
    logits = torch.cat([q, k]) @ torch.cat([all_q, all_k]).t() / temperature
    columns = torch.arange(2 * total, device=q.device)
    return F.cross_entropy(logits.masked_fill(columns == itself[:, None], -math.inf), other)


def cross_view_contrastive_loss(q: Tensor, k: Tensor, temperature: float, across: Across) -> Tensor:
    """InfoNCE whose keys are the batch of the other view, mean of both directions (Wang & Isola 2020, STL-10).

    ½ mean_i -log[e^{q_i·k_i/T} / Σ_j e^{q_i·k_j/T}], and the same with q and k exchanged. Each of this process's N
    queries has as many keys as all ranks have images: its positive and the others, none of its own view.
    """
    all_q, first = across.gather(q)
    all_k, _ = across.gather(k)
    own = torch.arange(first, first + len(q), device=q.device)
    of_directions = [F.cross_entropy(x @ keys.t() / temperature, own) for x, keys in ((q, all_k), (k, all_q))]
    return (of_directions[0] + of_directions[1]) / 2


def in_batch_uniform_loss(x: Tensor, t: float, across: Across) -> Tensor:
    """Wang & Isola 2020, Eq 6 as their code has it: log mean exp(-t‖x_i - x_j‖²) over pairs of the batch of all ranks.

    The same number on every rank. Each pair is counted from both sides, so that no rank is without one.
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
    """WeightedLoss's three terms without a queue: SimCLR is (1, 0, 0), Wang & Isola's STL-10 loss (0, .98, .96).

    negatives: of the contrastive term, a name of CONTRASTIVE. Uniformity is the mean of that of each view. The queue it
    is called with is not looked at.
    """

    negatives: str = "simclr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negatives not in CONTRASTIVE:
            raise InputError(f"the negatives of a batch are {' or '.join(CONTRASTIVE)}, not {self.negatives!r}")
        if self.unif_w and not self.intra_batch:
            raise InputError(
                "without a queue uniformity is over pairs of the batch alone: --moco-unif-no-intra-batch needs a"
                " --moco-k of at least 1"
            )

    def contrastive(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return CONTRASTIVE[self.negatives](q, k, self.temperature, self.across)

    def uniform(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        of_views = [in_batch_uniform_loss(x, self.unif_t, self.across) for x in (q, k)]
        return (of_views[0] + of_views[1]) / 2
