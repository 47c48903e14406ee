"""The batch of all ranks for a loss: collectives with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from moco.distributed.collectives import all_reduce_max, all_reduce_sum, gather_rows
from moco.distributed.session import rank, world_size


class _GatherRowsWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes  # type: ignore[attr-defined]
        return gather_rows(x, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # every rank's loss depends on its own copy of these rows: the gradients of all copies are added
        total = all_reduce_sum(grad.contiguous())
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]], None


class _AllReduceSumWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return all_reduce_sum(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return all_reduce_sum(grad)


class GlobalBatch:
    """Gives a loss the samples of all ranks, with gradients.

    It is the `across` of `moco.losses`.

    DistributedDataParallel averages the ranks' gradients. So a loss that is the same number L on every rank gets
    exactly the gradient of L. Ranks may weight it unevenly, if their weights sum to the world size.
    """

    def __init__(self, sizes: list[int] | None = None) -> None:
        self.sizes = sizes

    def gather(self, x: Tensor) -> tuple[Tensor, int]:
        """Returns (rows of all ranks, position of this rank's first row)."""
        if world_size() == 1:
            return x, 0
        sizes = self.sizes or [len(x)] * world_size()
        return _GatherRowsWithGrad.apply(x, sizes), sum(sizes[: rank()])

    def logsumexp(self, x: Tensor) -> Tensor:
        """Returns log Σ_ranks exp(x) of a scalar x."""
        if world_size() == 1:
            return x
        top = all_reduce_max(x)
        return top + _AllReduceSumWithGrad.apply((x - top).exp()).log()
