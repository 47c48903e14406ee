"""BatchNorm over the batch of all ranks, without waiting for the device.

torch.nn.SyncBatchNorm reads back three times in each layer, to find the ranks that have samples. Here every rank has
samples in every batch (`Sampler` and the parser ensure it), so nothing is read back.
On a GPU the kernels are torch's. torch's layer refuses a CPU; here a CPU has the kernels of sync_kernels.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moco.distributed import all_reduce_sum, gather_rows, world_size
from moco.encoders import sync_kernels
from moco.encoders.group_values import dense


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Implements torch.nn.SyncBatchNorm for ranks that all have samples.

    It is not a subclass of torch's layer, because DistributedDataParallel refuses torch's layer on a CPU.
    after: modules that follow, as in timm's layers.
    """

    def __init__(self, num_features: int, after: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(num_features, **kwargs)
        self.after = after or nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        batch_statistics = self.training or self.running_mean is None
        momentum = 0.1 if self.momentum is None else self.momentum
        running = (self.running_mean, self.running_var)
        if not batch_statistics or world_size() == 1:
            out = F.batch_norm(input, *running, self.weight, self.bias, batch_statistics, momentum, self.eps)
        else:
            out = _Normalise.apply(input, self.weight, self.bias, *running, momentum, self.eps)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return self.after(out)


def _kernels(x: Tensor) -> Any:
    return torch if x.is_cuda else sync_kernels


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Normalises x [n, C, ...] by the statistics of all ranks' samples."""
        x, channels = dense(x), x.shape[1]
        kernels = _kernels(x)
        mean, inverse_std = kernels.batch_norm_stats(x, eps)
        count = mean.new_full((1,), x.numel() // channels)
        of_ranks = gather_rows(torch.cat([mean, inverse_std, count])[None])  # [ranks, 2 C + 1]
        means, inverse_stds, counts = of_ranks.split([channels, channels, 1], dim=1)
        counts = counts.flatten()
        mean, inverse_std = kernels.batch_norm_gather_stats_with_counts(
            x, means.contiguous(), inverse_stds.contiguous(), running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, inverse_std, counts.to(torch.int32))
        return kernels.batch_norm_elemt(x, weight, bias, mean, inverse_std, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x, weight and bias.

        That of x uses sums over the samples of all ranks. Those of weight and bias are of this rank's samples.
        DistributedDataParallel reduces the latter over the ranks.
        """
        x, weight, mean, inverse_std, counts = ctx.saved_tensors
        grad = dense(grad)
        kernels = _kernels(x)
        wanted = ctx.needs_input_grad[:3]
        sum_grad, sum_product, grad_weight, grad_bias = kernels.batch_norm_backward_reduce(
            grad, x, mean, inverse_std, weight, *wanted
        )
        grad_x = None
        if wanted[0]:
            sums = all_reduce_sum(torch.cat([sum_grad, sum_product]))
            sum_grad, sum_product = sums.split(len(sum_grad))
            grad_x = kernels.batch_norm_backward_elemt(
                grad, x, mean, inverse_std, weight, sum_grad, sum_product, counts
            )
        return grad_x, grad_weight if wanted[1] else None, grad_bias if wanted[2] else None, None, None, None, None
