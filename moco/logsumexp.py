"""The log-sum-exp over a queue that never holds all similarities: the one primitive under every loss head."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _QueueLogSumExp(torch.autograd.Function):
    """One pass over the queue gives the value and, since the queue is constant, the gradient: d lse/dq = scale ·
    softmax · queueᵀ.

    Both are accumulated chunk by chunk under a running maximum, so that N×K is never held and backward costs N×C.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, queue: Tensor, scale: float, chunk: int) -> Tensor:
        top = q.new_full((len(q), 1), -math.inf)
        total = q.new_zeros((len(q), 1))
        weighted = torch.zeros_like(q)
        for part in queue.split(chunk, dim=1):
            similarity = (q @ part).mul_(scale)
            new_top = torch.maximum(top, similarity.amax(dim=1, keepdim=True))
            decay = (top - new_top).exp_()
            share = similarity.sub_(new_top).exp_()
            total = total * decay + share.sum(dim=1, keepdim=True)
            weighted = (weighted * decay).addmm_(share, part.t())
            top = new_top
        ctx.save_for_backward(weighted * (scale / total))
        return (top + total.log()).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None, None


def queue_logsumexp(q: Tensor, queue: Tensor, scale: float, chunk: int = 8192) -> Tensor:
    """log Σ_j exp(scale · q_i·Q_j): [N, C], [C, K] -> [N], differentiable in q (once), exact, memory N × min(K,
    chunk)."""
    return _QueueLogSumExp.apply(q, queue, scale, chunk)
