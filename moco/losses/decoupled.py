"""Decoupled contrastive losses: InfoNCE without the positive in the denominator.

Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, arXiv 2110.06848. Shapes as in moco/losses/weighted.py.
InfoNCE's gradient has a factor: the share of the negatives in the denominator.
This factor vanishes where the negatives are easy or few. Decoupled losses do not have it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moco.losses.logsumexp import LogSumExp, queue_logsumexp
from moco.losses.weighted import Across, LossOutput, OneProcess, check_positive, full_precision


def decoupled_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature: float,
    sigma: float | None = None,
    across: Across | None = None,
    logsumexp: LogSumExp = queue_logsumexp,
) -> Tensor:
    """Returns L_DC, or with sigma L_DCW.

    Mean over queries of -w·q·k/T + log Σ_j e^{q·Q_j/T}, with w from `positive_weights`.
    """
    similarity = (q * k).sum(dim=1)
    negatives = logsumexp(q, queue, 1 / temperature)
    return (negatives - positive_weights(similarity, sigma, across) * similarity / temperature).mean()


def in_batch_decoupled_loss(
    q: Tensor, k: Tensor, temperature: float, sigma: float | None = None, across: Across | None = None
) -> Tensor:
    """Returns `decoupled_loss` without a queue.

    Mean over this process's 2N views. A view's negatives are all views of the other images in the batch of all ranks.
    """
    across = across or OneProcess()
    all_q, first = across.gather(q)
    all_k, _ = across.gather(k)
    images = torch.arange(len(all_q), device=q.device).repeat(2)
    own = images[first : first + len(q)].repeat(2)
    logits = torch.cat([q, k]) @ torch.cat([all_q, all_k]).t() / temperature
    negatives = logits.masked_fill(images == own[:, None], -math.inf).logsumexp(dim=1)
    similarity = (q * k).sum(dim=1)
    positives = positive_weights(similarity, sigma, across) * similarity / temperature
    return negatives.mean() - positives.mean()


def positive_weights(similarity: Tensor, sigma: float | None, across: Across | None) -> Tensor | float:
    """Returns DCLW's weights w [N] of the positives; 1.0 without sigma.

    w = 2 - e^{s/σ} / mean(e^{s/σ}), with the positives' similarities s [N]. The mean is over the batch of all ranks.
    Pairs that are far apart have a larger weight; the mean of w is 1. Gradients flow through w.
    """
    if sigma is None:
        return 1.0
    everyone, first = (across or OneProcess()).gather(similarity)
    return 2 - len(everyone) * (everyone / sigma).softmax(dim=0)[first : first + len(similarity)]


@dataclass
class DecoupledLoss:
    """Computes `decoupled_loss` over a queue.

    sigma: None for DCL; .5 is the paper's DCLW.
    across: the other ranks.
    """

    temperature: float = 0.1
    sigma: float | None = None
    across: Across = field(default_factory=OneProcess)
    logsumexp: LogSumExp = queue_logsumexp

    def __post_init__(self) -> None:
        check_positive("temperature (--moco-t)", self.temperature)
        if self.sigma is not None:
            check_positive("sigma of the weights", self.sigma)

    def value(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return decoupled_loss(q, k, queue, self.temperature, self.sigma, self.across, self.logsumexp)

    @full_precision
    def __call__(
        self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor | None = None, queue_labels: Tensor | None = None
    ) -> LossOutput:
        return LossOutput(self.value(q, k, queue), {})


@dataclass
class InBatchDecoupledLoss(DecoupledLoss):
    """Computes `in_batch_decoupled_loss`; ignores the queue."""

    def value(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return in_batch_decoupled_loss(q, k, self.temperature, self.sigma, self.across)
