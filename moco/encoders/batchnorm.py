"""Keeping BatchNorm from telling which key belongs to a query (`--bn`).

A query and its key that are normalised together share batch statistics, and the encoder learns to read the answer off
them (He et al. 2020, §3.3). MoCo's cure is to shuffle the keys over the ranks, so that the two are normalised in
different company. On one process there is no other rank: there, split the batch into virtual groups, and permute the
keys over the groups.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.encoders.sync_batchnorm import SyncBatchNorm
from moco.errors import InputError

BN_MODES = ("shuffle", "split", "sync", "local")


class _SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalises every group of about `group_size` samples by itself, as that many samples per GPU would have it.

    Sample i of n is in group i mod (n // group_size), so group sizes differ by at most one and any batch works.
    Running statistics take the mean of the groups' statistics. Parameters, buffers and evaluation are those of the
    plain layer.
    """

    def __init__(self, num_features: int, group_size: int = 32, after: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(num_features, **kwargs)
        self.group_size = group_size
        self.after = after or nn.Identity()  # timm's layers carry their activation

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        groups = max(1, len(input) // self.group_size)
        in_one = not self.training or groups == 1
        return self.after(super().forward(input) if in_one else self._in_groups(input, groups))

    def _in_groups(self, input: Tensor, groups: int) -> Tensor:
        n, channels = input.shape[:2]
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        running = None
        if self.running_mean is not None and self.running_var is not None:
            running = self.running_mean.repeat(groups), self.running_var.repeat(groups)
        if n % groups == 0:
            # groups side by side in the channel axis: one call normalises them all
            out = _narrow(self._normalise(_wide(input, groups), running, groups), groups)
        else:
            out = torch.empty_like(input)
            for g in range(groups):
                part = None if running is None else tuple(r[g * channels : (g + 1) * channels] for r in running)
                out[g::groups] = self._normalise(input[g::groups], part, 1)
        if running is not None:
            self.running_mean.copy_(running[0].view(groups, channels).mean(0))  # type: ignore[union-attr]
            self.running_var.copy_(running[1].view(groups, channels).mean(0))  # type: ignore[union-attr]
        return out

    def _normalise(self, x: Tensor, running: Any, groups: int) -> Tensor:
        mean, var = running or (None, None)
        weight = None if self.weight is None else self.weight.repeat(groups)
        bias = None if self.bias is None else self.bias.repeat(groups)
        return F.batch_norm(x, mean, var, weight, bias, True, 0.1 if self.momentum is None else self.momentum, self.eps)


def _wide(x: Tensor, groups: int) -> Tensor:
    """[n, C, ...] -> [n / groups, groups · C, ...] in the memory format of x: for NCHW nothing is copied, for NHWC runs
    of C, and the layers after it get NHWC again."""
    n, channels = x.shape[:2]
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous():
        return x.reshape(n // groups, groups * channels, *x.shape[2:])
    rows = x.permute(0, 2, 3, 1).unflatten(0, (n // groups, groups)).permute(0, 2, 3, 1, 4)
    return rows.flatten(3).permute(0, 3, 1, 2)


def _narrow(x: Tensor, groups: int) -> Tensor:
    """The inverse of `_wide`."""
    n, wide = x.shape[:2]
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous():
        return x.reshape(n * groups, wide // groups, *x.shape[2:])
    rows = x.permute(0, 2, 3, 1).unflatten(3, (groups, wide // groups)).permute(0, 3, 1, 2, 4)
    return rows.flatten(0, 1).permute(0, 3, 1, 2)


def isolate_batchnorm(encoder: nn.Module, mode: str, group_size: int, device: torch.device) -> nn.Module:
    """`encoder` with its BatchNorm layers as `mode` asks: replaced for 'split' and 'sync', else unchanged."""
    if mode not in BN_MODES:
        raise InputError(f"--bn {mode} is unknown; choose one of {', '.join(BN_MODES)}")
    if mode == "sync":
        if device.type != "cuda":
            raise InputError(
                "--bn sync needs a GPU (torch has no SyncBatchNorm on the CPU); take --bn shuffle or --bn split"
            )
        _replace(encoder, SyncBatchNorm)
    if mode == "split":
        if group_size < 2:
            raise InputError(f"--bn-group-size must be at least 2, not {group_size}: one sample has no statistics")
        _replace(encoder, partial(_SplitBatchNorm, group_size=group_size))
    return encoder


def _replace(module: nn.Module, kind: Callable[..., nn.Module]) -> None:
    """Puts layers of another kind in the place of BatchNorm layers, with the very same parameters and buffers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            layer = kind(
                child.num_features,
                after=nn.Sequential(*child.children()),  # none in torch's layers, drop and act in timm's
                eps=child.eps,
                momentum=child.momentum,
                affine=child.affine,
                track_running_stats=child.track_running_stats,
            )
            # the very tensors, whatever their type
            layer._parameters, layer._buffers = child._parameters, child._buffers
            setattr(module, name, layer)
        else:
            _replace(child, kind)
