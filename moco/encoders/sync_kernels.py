"""torch's CUDA kernels of SyncBatchNorm, under their names, for a CPU.

x, grad: [n, C, ...], this rank's samples.
mean, inverse_std, weight, bias: [C].
Statistics are float32 for images of half precision, as on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns (mean, 1 / standard deviation) of this rank's samples."""
    var, mean = torch.var_mean(_wide(x), _samples(x), correction=0)
    return mean, (var + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns (mean, 1 / standard deviation) of the samples of all ranks.

    It also updates the running statistics.
    mean, inverse_std: those of the ranks, [ranks, C].
    counts: values of a channel on each rank, [ranks].
    """
    total = counts.sum()
    share = (counts / total)[:, None]
    of_all = (share * mean).sum(0)
    var = (share * (inverse_std**-2 - eps + (mean - of_all) ** 2)).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(of_all.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (total / (total - 1))).to(running_var.dtype), momentum)
    return of_all, (var + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse_std: Tensor, eps: float
) -> Tensor:
    """Returns (x - mean) / std · weight + bias."""
    scale = inverse_std if weight is None else inverse_std * weight
    out = (_wide(x) - _over(mean, x)) * _over(scale, x)
    return (out if bias is None else out + _over(bias, x)).to(x.dtype)


def batch_norm_backward_reduce(
    grad: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor, weight: Tensor | None, *wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns two sums over this rank's samples, and two gradients.

    The sums are of grad and of grad · (x - mean). The gradients are those of weight and bias. All are [C].
    """
    wide = _wide(grad)
    sum_grad = wide.sum(_samples(x))
    sum_product = (wide * (_wide(x) - _over(mean, x))).sum(_samples(x))
    return sum_grad, sum_product, sum_product * inverse_std, sum_grad


def batch_norm_backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    weight: Tensor | None,
    sum_grad: Tensor,
    sum_product: Tensor,
    counts: Tensor,
) -> Tensor:
    """Returns the gradient of x.

    sum_grad, sum_product: sums over the samples of all ranks.
    """
    total = counts.sum()
    scale = inverse_std if weight is None else inverse_std * weight
    slope = inverse_std**2 * sum_product / total
    centred = _wide(grad) - _over(sum_grad / total, x)
    return ((centred - (_wide(x) - _over(mean, x)) * _over(slope, x)) * _over(scale, x)).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _samples(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def _over(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))
