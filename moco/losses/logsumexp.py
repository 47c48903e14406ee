"""Log-sum-exp over a queue, in chunks: the basis of every loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Similarities held at a time. On a CPU a chunk must fit one core's second-level cache (fp32: 1 MiB), because several
# passes read it. An accelerator needs large kernels (8 MiB).
ENTRIES = {"cpu": 2**18}
ENTRIES_ELSEWHERE = 2**21


LogSumExp = Callable[[Tensor, Tensor, float], Tensor]  # (q [N, C], queue [C, K], scale) -> [N]


class _QueueLogSumExp(torch.autograd.Function):
    """Value and gradient in one pass over the queue.

    The queue is constant, so d lse/dq = scale · softmax · queueᵀ. Value and gradient are accumulated chunk by chunk
    under a running maximum: N×K is never held, and backward costs N×C. All chunks use the same memory, because new
    pages cost more than the exponentials.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, queue: Tensor, scale: float, chunk: int) -> Tensor:
        scaled = q * scale
        top = q.new_full((len(q), 1), -math.inf)
        total = q.new_zeros((len(q), 1))
        weighted = torch.zeros_like(q) if ctx.needs_input_grad[0] else None
        buffer = q.new_empty((len(q), min(chunk, queue.shape[1])))
        for part in queue.split(chunk, dim=1):
            share = buffer[:, : part.shape[1]]
            torch.mm(scaled, part, out=share)  # similarities; below, e^(similarity - top)
            new_top = torch.maximum(top, share.amax(dim=1, keepdim=True))
            decay = (top - new_top).exp_()
            share.sub_(new_top).exp_()
            total.mul_(decay).add_(share.sum(dim=1, keepdim=True))
            if weighted is not None:
                weighted.mul_(decay).addmm_(share, part.t())
            top = new_top
        if weighted is not None:
            ctx.save_for_backward(weighted.mul_(scale / total))
        return (top + total.log()).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None, None


def queue_logsumexp(q: Tensor, queue: Tensor, scale: float, chunk: int | None = None) -> Tensor:
    """log Σ_j exp(scale · q_i·Q_j): [N, C], [C, K] -> [N], exact.

    Rows may have any norm. Differentiable once, in q. Memory besides the result: N × min(K, `chunk`) numbers; by
    default about ENTRIES for any N and K.
    """
    if chunk is None:
        chunk = max(256, ENTRIES.get(q.device.type, ENTRIES_ELSEWHERE) // max(1, len(q)))
    return _QueueLogSumExp.apply(q, queue, scale, chunk)


def whole_logsumexp(q: Tensor, queue: Tensor, scale: float) -> Tensor:
    """`queue_logsumexp` with all N×K similarities in memory, as in published code."""
    return (scale * q @ queue.detach().clone()).logsumexp(dim=1)
