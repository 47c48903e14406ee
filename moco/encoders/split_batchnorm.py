"""BatchNorm over consecutive groups of a batch, without copying the batch.

A group is a slice of the batch, and a slice is a view, in NHWC and in NCHW. torch has kernels for the statistics of a
slice, and on a CPU for its values too. On a GPU one compiled kernel writes the values of all groups. With torch's own
kernels every group would have its own memory, and a copy would have to join them.

x is [n, C, ...] in either memory format. Statistics [groups, C] are over a group's samples and pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moco.distributed import shares
from moco.encoders.group_values import (
    blocks,
    dense,
    in_rows,
    joined,
    kernels,
    per_channel,
    scale_and_shift,
    update,
    value,
)


class SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalises each group of about `group_size` samples by its own statistics.

    This is BatchNorm as that many samples per GPU would have it.
    n samples are n // group_size groups of consecutive samples. Their sizes differ by at most one, the larger first.
    Running statistics take the mean of the groups' statistics.
    Parameters, buffers and evaluation are those of the plain layer.
    after: modules that follow, as in timm's layers.
    """

    def __init__(self, num_features: int, group_size: int = 32, after: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(num_features, **kwargs)
        self.group_size = group_size
        self.after = after or nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        groups = max(1, len(input) // self.group_size)
        in_one = not self.training or groups == 1
        return self.after(super().forward(input) if in_one else self._in_groups(input, groups))

    def _in_groups(self, input: Tensor, groups: int) -> Tensor:
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        arguments = (input, self.weight, self.bias, self.running_mean, self.running_var, groups, momentum, self.eps)
        if torch.compiler.is_compiling():
            return traceable(*arguments)
        return (_CompiledValues if input.is_cuda else _NativeValues).apply(*arguments)


def mean_of_groups(momentum: float, groups: int) -> list[float]:
    """Returns the momentum of the running-statistics update of each group.

    The updates, one after the other, equal one update with `momentum` by the mean of the groups.
    The last update has the weight m/G. The one before also has m/G, after the last has shrunk it by 1 - m/G.
    The same holds for all earlier ones.
    """
    return [momentum / (groups - later * momentum) for later in reversed(range(groups))]


def traceable(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    groups: int,
    momentum: float,
    eps: float,
) -> Tensor:
    """Normalises groups by a few functions that torch.compile can fuse.

    The result is that of `_NativeValues`. It is for torch.compile of a whole encoder.
    """
    x = dense(x)
    out = []
    for block, _, share in blocks(x, groups, momentum):
        wide = block.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(wide, dim=[1, 3][: block.dim() - 2], correction=0)
        inverse_std = (var + eps).rsqrt()
        update(block, mean.detach(), inverse_std.detach(), running_mean, running_var, share, eps)
        of_channels = (mean, *scale_and_shift(mean, inverse_std, weight, bias))
        out.append(value(wide, *(per_channel(v, block) for v in of_channels)).to(x.dtype))
    return joined(out, x)


class _NativeValues(torch.autograd.Function):
    """Normalises groups by torch's kernels.

    Each group's values are written to their place in the output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        groups: int,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x, sizes = dense(x), shares(len(x), groups)
        out = torch.empty_like(x)
        of_type = next((v for v in (weight, bias, running_mean, running_var) if v is not None), x)
        mean, inverse_std = of_type.new_empty((2, groups, x.shape[1]))
        shares_of_running = mean_of_groups(momentum, groups)
        for g, (part, into) in enumerate(zip(x.split(sizes), out.split(sizes), strict=True)):
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, running_mean, running_var, True, shares_of_running[g], eps,
                out=into, save_mean=mean[g], save_invstd=inverse_std[g],
            )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.sizes = sizes
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        grad = dense(grad)
        wanted = list(ctx.needs_input_grad[:3])
        grad_x = torch.empty_like(x) if wanted[0] else x
        of_weight = []
        of_bias = []
        parts = zip(grad.split(ctx.sizes), x.split(ctx.sizes), grad_x.split(ctx.sizes), mean, inverse_std, strict=True)
        for of_part, part, into, middle, inverse in parts:
            by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
                of_part, part, weight, None, None, middle, inverse, True, ctx.eps, wanted
            )
            if wanted[0]:
                into.copy_(by_x)
            of_weight.append(by_weight)
            of_bias.append(by_bias)
        sums = [torch.stack(of).sum(0) if want else None for of, want in ((of_weight, wanted[1]), (of_bias, wanted[2]))]
        return grad_x if wanted[0] else None, *sums, None, None, None, None, None


class _CompiledValues(torch.autograd.Function):
    """Normalises groups on CUDA, with compiled kernels for the values.

    torch's kernels compute the statistics of a slice. These kernels exist on CUDA alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        groups: int,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = dense(x)
        of_parts = [torch.batch_norm_stats(part, eps) for part in x.split(shares(len(x), groups))]
        statistics = in_rows(of_parts)
        out = torch.empty_like(x)
        for (into, _, _), (block, of, share) in zip(blocks(out, groups), blocks(x, groups, momentum), strict=True):
            kernels()[0](into, block, statistics[:, of], weight, bias, running_mean, running_var, share, eps)
        ctx.save_for_backward(x, weight, statistics)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics = ctx.saved_tensors
        sizes = shares(len(x), ctx.groups)
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        of_parts = [
            torch.batch_norm_backward_reduce(of_grad, of_x, mean, inverse_std, weight, True, False, False)[:2]
            for of_grad, of_x, mean, inverse_std in zip(grad.split(sizes), x.split(sizes), *statistics, strict=True)
        ]
        sums = in_rows(of_parts)
        by_x = torch.empty_like(x)
        by_channel = []
        for (into, of, _), (of_grad, _, _), (of_x, _, _) in zip(
            *(blocks(tensor, ctx.groups) for tensor in (by_x, grad, x)), strict=True
        ):
            by_channel.append(kernels()[1](into, of_grad, of_x, statistics[:, of], weight, sums[:, of]))
        by_weight, by_bias = sum(by_channel[1:], by_channel[0])
        wanted = ctx.needs_input_grad
        results = [value if want else None for value, want in zip((by_x, by_weight, by_bias), wanted[:3], strict=True)]
        return *results, None, None, None, None, None
