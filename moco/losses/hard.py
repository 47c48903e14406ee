"""Losses with equal weights for all negatives, or for hard negatives alone.

Wang & Liu, "Understanding the Behaviour of Contrastive Loss", CVPR 2021. Shapes as in moco/losses/weighted.py.
A negative is hard if its similarity is at least the m-th largest of its query's K similarities.
m is α·K, rounded, and at least 1. Entries that tie with the m-th are all hard.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moco.errors import InputError
from moco.losses.weighted import LossOutput, check_positive, full_precision

_AT_ONCE = 1 << 22  # similarities held at a time: 16 MiB of fp32


class _OverHardNegatives(torch.autograd.Function):
    """Computes the log-sum-exp or mean over each query's hard negatives.

    scale: None gives the mean.
    The gradient is computed in the same pass, because similarities that are computed again may round differently.
    They could then fall below their own quantile. A few queries are processed at a time, which limits the memory.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, queue: Tensor, count: int, scale: float | None) -> Tensor:
        values = []
        slopes = []
        for part in q.split(max(1, _AT_ONCE // queue.shape[1])):
            similarity = part @ queue
            quantile = similarity.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
            easy = similarity < quantile
            if scale is None:
                share = (~easy).to(q.dtype)
                share /= share.sum(dim=1, keepdim=True)
                values.append((share * similarity).sum(dim=1))
                slopes.append(share @ queue.t())
            else:
                scaled = similarity.mul_(scale).masked_fill_(easy, -math.inf)
                values.append(scaled.logsumexp(dim=1))
                slopes.append(scaled.softmax(dim=1) @ queue.t() * scale)
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None, None


def hard_count(share: float, length: int) -> int:
    """Returns m, the number of hard negatives in a queue of `length`.

    Entries that tie with the m-th come on top of it.
    """
    return max(1, round(share * length))


def hard_contrastive_loss(q: Tensor, k: Tensor, queue: Tensor, temperature: float, share: float) -> Tensor:
    """Returns InfoNCE over hard negatives alone.

    Mean over queries (Wang & Liu, Eq 9).
    share: α; with 1 it is InfoNCE.
    """
    positive = (q * k).sum(dim=1) / temperature
    negatives = _OverHardNegatives.apply(q, queue, hard_count(share, queue.shape[1]), 1 / temperature)
    return (torch.logaddexp(positive, negatives) - positive).mean()


def simple_loss(q: Tensor, k: Tensor, queue: Tensor, weight: float = 1.0, share: float = 1.0) -> Tensor:
    """Returns the simple loss, over all negatives or the hard ones.

    Mean over queries of -q·k + λ Σ_j q·Q_j, with λ = weight / (number of negatives) (Wang & Liu, Eq 3).
    share: α; below 1 only hard negatives count, which gives the hard simple loss.
    With weight 1 the loss is the limit of τ · InfoNCE for τ → ∞.
    """
    positive = (q * k).sum(dim=1)
    if share < 1:
        negatives = _OverHardNegatives.apply(q, queue, hard_count(share, queue.shape[1]), None)
    else:
        negatives = q @ queue.mean(dim=1)
    return (weight * negatives - positive).mean()


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise InputError(f"--moco-hard-alpha must be greater than 0 and at most 1, not {share:g}")


@dataclass
class HardContrastiveLoss:
    """Computes `hard_contrastive_loss`.

    The paper's share for CIFAR is .0819: 4,095 of 50,000.
    """

    temperature: float = 0.07
    share: float = 0.0819

    def __post_init__(self) -> None:
        check_positive("temperature (--moco-t)", self.temperature)
        _check_share(self.share)

    @full_precision
    def __call__(
        self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor | None = None, queue_labels: Tensor | None = None
    ) -> LossOutput:
        return LossOutput(hard_contrastive_loss(q, k, queue, self.temperature, self.share), {})


@dataclass
class SimpleLoss:
    """Computes `simple_loss`, with a share below 1 over the hard negatives."""

    weight: float = 1.0
    share: float = 1.0

    def __post_init__(self) -> None:
        check_positive("weight of the negatives (--moco-simple-w)", self.weight)
        _check_share(self.share)

    @full_precision
    def __call__(
        self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor | None = None, queue_labels: Tensor | None = None
    ) -> LossOutput:
        return LossOutput(simple_loss(q, k, queue, self.weight, self.share), {})
