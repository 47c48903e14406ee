"""Computes the values of all groups of a split BatchNorm at once.

One compiled kernel can then write them.
A block is a view of a batch [n, C, ...] with groups of one size: [groups, samples · pixels, C] for NHWC and for two
dimensions, else [groups, samples, C, pixels]. A batch is one block, or two where its groups differ by one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from moco.compiled import compiled


def dense(x: Tensor) -> Tensor:
    """Returns x itself if it is NHWC, else contiguous x (NCHW)."""
    return x if _is_nhwc(x) else x.contiguous()


def blocks(x: Tensor, groups: int, momentum: float = 0.0) -> Iterator[tuple[Tensor, slice, float]]:
    """Yields the blocks of x, with their groups and momentum.

    The groups are a slice. The momentum is for the mean statistics of the block's groups.
    With these momenta, block after block moves a running statistic as the mean of all groups would.
    """
    size, larger = divmod(len(x), groups)
    rows = x.permute(0, 2, 3, 1) if _is_nhwc(x) else x
    start = 0
    for first, count, samples in ((0, larger, size + 1), (larger, groups - larger, size)):
        if not count:
            continue
        part = rows[start : start + count * samples]
        start += count * samples
        if _is_nhwc(x) or x.dim() == 2:
            view = part.reshape(count, -1, part.shape[-1])
        else:
            view = part.reshape(count, samples, part.shape[1], -1)
        later = groups - first - count
        yield view, slice(first, first + count), momentum * count / (groups - momentum * later)


def joined(parts: list[Tensor], like: Tensor) -> Tensor:
    """Returns the tensor whose blocks are `parts`: the inverse of `blocks`.

    With groups of one size it is a view.
    like: a tensor of the wanted shape and memory format.
    """
    flat = parts[0].flatten() if len(parts) == 1 else torch.cat([part.flatten() for part in parts])
    if not _is_nhwc(like):
        return flat.view(like.shape)
    n, channels, height, width = like.shape
    return flat.view(n, height, width, channels).permute(0, 3, 1, 2)


def in_rows(of_groups: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Stacks two values [C] of each group to [2, groups, C]."""
    return torch.stack([value for values in zip(*of_groups, strict=True) for value in values]).unflatten(0, (2, -1))


def _is_nhwc(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _over_groups(into: Tensor, function: Callable[..., Tensor], *values: Tensor) -> None:
    """Writes function(*values) to `into`.

    values: shaped like `into`, or [groups, C].
    Inside a compiled kernel all groups are computed at once.
    Elsewhere nothing fuses the operations, so they run group by group.
    """
    of_channels = [v if v.shape == into.shape else per_channel(v, into) for v in values]
    if torch.compiler.is_compiling():
        into.copy_(function(*of_channels))
        return
    for of_group, *group in zip(into, *of_channels, strict=True):
        of_group.copy_(function(*group))


def per_channel(values: Tensor, block: Tensor) -> Tensor:
    """Returns values [groups, C] in a shape that broadcasts over a block."""
    return values.view(len(block), 1, -1, *[1] * (block.dim() - 3))


def scale_and_shift(
    mean: Tensor, inverse_std: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    scale = inverse_std if weight is None else inverse_std * weight
    return scale, torch.zeros_like(mean) if bias is None else bias.expand_as(mean)


def value(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (x - mean) * scale + shift


def update(
    x: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    share: float,
    eps: float,
) -> None:
    """Moves the running statistics towards the mean over a block's groups.

    x: the block.
    share: the momentum of this update.
    """
    if running_mean is None or running_var is None:
        return
    count = x.numel() // mean.numel()
    var = (inverse_std**-2 - eps) * (count / (count - 1))
    running_mean.lerp_(mean.mean(0).to(running_mean.dtype), share)
    running_var.lerp_(var.mean(0).to(running_var.dtype), share)


def normalise(
    into: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    share: float,
    eps: float,
) -> None:
    """Writes a normalised block to `into` and updates the running statistics.

    into = (x - mean) / std · weight + bias.
    statistics: mean and 1 / std, [2, groups, C].
    """
    mean, inverse_std = statistics.unbind()
    update(x, mean, inverse_std, running_mean, running_var, share, eps)
    _over_groups(into, value, x, mean, *scale_and_shift(mean, inverse_std, weight, bias))


def gradients(into: Tensor, grad: Tensor, x: Tensor, statistics: Tensor, weight: Tensor | None, sums: Tensor) -> Tensor:
    """Writes the gradient of a block x to `into`.

    Returns the gradients of weight and bias, [2, C].
    sums: of grad and of grad · (x - mean), [2, groups, C].
    """
    (mean, inverse_std) = statistics.unbind()
    (sum_grad, sum_product) = sums.unbind()
    count = x.numel() // mean.numel()
    scale = inverse_std if weight is None else inverse_std * weight
    slope = inverse_std**2 * sum_product / count

    def of_x(grad: Tensor, x: Tensor, mean: Tensor, mean_grad: Tensor, slope: Tensor, scale: Tensor) -> Tensor:
        return (grad - mean_grad - (x - mean) * slope) * scale

    _over_groups(into, of_x, grad, x, mean, sum_grad / count, slope, scale)
    return torch.stack([(sum_product * inverse_std).sum(0), sum_grad.sum(0)])


@cache
def kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns `normalise` and `gradients`, compiled once for the process.

    The compiled functions take any sizes.
    """
    part = "values of split BatchNorm"
    return compiled(normalise, part, dynamic=True), compiled(gradients, part, dynamic=True)
