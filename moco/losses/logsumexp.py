"""Log-sum-exp over a queue, in chunks: the basis of most losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moco.compiled import compiled

# Similarities held at a time. On a CPU a chunk must fit one core's second-level cache (fp32: 1 MiB), because several
# passes read it. An accelerator needs large kernels (8 MiB).
ENTRIES = {"cpu": 2**18}
ENTRIES_ELSEWHERE = 2**21


LogSumExp = Callable[[Tensor, Tensor, float], Tensor]  # (q [N, C], queue [C, K], scale) -> [N]
# (q, queue, scale, columns of a chunk, whether the gradient is wanted) -> the value [N] and its gradient in q [N, C]
Sweep = Callable[[Tensor, Tensor, float, int, bool], tuple[Tensor, Tensor | None]]


class _QueueLogSumExp(torch.autograd.Function):
    """Computes the value and its gradient in one pass over the queue.

    The queue is constant, so d lse/dq = scale · softmax · queueᵀ.
    The N×K similarities are never in memory together. backward costs N×C.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, queue: Tensor, scale: float, chunk: int) -> Tensor:
        value, slope = sweep_for(q.device)(q, queue, scale, chunk, ctx.needs_input_grad[0])
        if slope is not None:
            ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return grad[:, None] * slope, None, None, None


def sweep_for(device: torch.device) -> Sweep:
    return running_sweep if device.type == "cpu" else merging_sweep


def running_sweep(q: Tensor, queue: Tensor, scale: float, chunk: int, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Returns value and gradient; for a CPU.

    It sums under a running maximum, in place.
    All chunks use the same memory, because new memory pages cost more time than the exponentials.
    """
    scaled = q * scale
    top = q.new_full((len(q), 1), -math.inf)
    total = q.new_zeros((len(q), 1))
    weighted = torch.zeros_like(q) if with_slope else None
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
    slope = None if weighted is None else weighted.mul_(scale / total)
    return (top + total.log()).squeeze(1), slope


def merging_sweep(q: Tensor, queue: Tensor, scale: float, chunk: int, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Returns value and gradient; for an accelerator.

    Each chunk has its own sum, and the sums are merged at the end.
    A chunk takes three kernels: similarities, softmax, mean of the queue's entries. With a running maximum it would
    take twelve. The means held at a time take no more memory than a chunk if it has at least 2·C columns.
    """
    n, dim = q.shape
    parts = queue.split(chunk, dim=1)
    slots = min(len(parts), max(2, chunk // dim))
    scaled = q * scale
    buffer = q.new_empty((n, min(chunk, queue.shape[1])))
    values = q.new_empty((n, slots))  # log-sum-exp of each chunk
    means = q.new_empty((slots, n, dim)) if with_slope else None  # of the queue's entries, weighted by the softmax
    held = 0
    for part in parts:
        if held == slots:
            values[:, 0], mean = _merge(values, means)
            if means is not None and mean is not None:
                means[0] = mean
            held = 1
        share = buffer[:, : part.shape[1]]
        torch.mm(scaled, part, out=share)
        _softmax(q.device)(share, values[:, held : held + 1])
        if means is not None:
            torch.mm(share, part.t(), out=means[held])
        held += 1
    value, mean = _merge(values[:, :held], None if means is None else means[:held])
    return value, None if mean is None else mean.mul_(scale)


def _merge(values: Tensor, means: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Merges the log-sum-exps and the means of some chunks.

    values: log-sum-exps [N, parts].
    means: [parts, N, C], or None.
    Returns the log-sum-exp [N] and the mean [N, C] of all chunks; None for the mean without `means`.
    """
    shares = values.log_softmax(dim=1)
    value = values[:, 0] - shares[:, 0]
    if means is None:
        return value, None
    return value, torch.bmm(shares.exp_()[:, None], means.transpose(0, 1)).squeeze(1)


def softmax_of_rows(x: Tensor, value: Tensor) -> None:
    """Replaces the rows of x [N, k] by their softmax.

    value: [N, 1]; it receives the log-sum-exps of the rows.
    """
    top = x.amax(dim=1, keepdim=True)
    x.sub_(top).exp_()
    total = x.sum(dim=1, keepdim=True)
    x.div_(total)
    value.copy_(top + total.log())


def _softmax(device: torch.device) -> Callable[[Tensor, Tensor], None]:
    return fused_softmax() if device.type == "cuda" else softmax_of_rows


@cache
def fused_softmax() -> Callable[[Tensor, Tensor], None]:
    """Returns `softmax_of_rows` as one compiled kernel.

    The kernel needs no memory for a second chunk.
    """
    return compiled(softmax_of_rows, "log-sum-exp of the loss")


def queue_logsumexp(q: Tensor, queue: Tensor, scale: float, chunk: int | None = None) -> Tensor:
    """Returns log Σ_j exp(scale · q_i·Q_j), exact: [N].

    q: [N, C]. queue: [C, K]. The rows may have any norm. Differentiable once, in q.
    chunk: columns of the queue at a time. By default a chunk has about ENTRIES similarities, and at least 256 columns.
    Memory besides the result: N × min(K, `chunk`) numbers, and on an accelerator at most as many again.
    """
    if chunk is None:
        chunk = max(256, ENTRIES.get(q.device.type, ENTRIES_ELSEWHERE) // max(1, len(q)))
    return _QueueLogSumExp.apply(q, queue, scale, chunk)


def whole_logsumexp(q: Tensor, queue: Tensor, scale: float) -> Tensor:
    """Returns `queue_logsumexp`, with all N×K similarities in memory.

    Published code computes it in this way.
    """
    return (scale * q @ queue.detach().clone()).logsumexp(dim=1)
