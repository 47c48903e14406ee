"""Keeps BatchNorm from revealing which key belongs to a query (`--bn`).

If a query and its key are normalised together, they share batch statistics. The encoder then learns to find the key
by these statistics (He et al. 2020, §3.3). MoCo shuffles the keys over the ranks, so that query and key are normalised
in different batches. With one process there is no other rank. There, split the batch into virtual groups, and permute
the keys over the groups.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from moco.encoders.split_batchnorm import SplitBatchNorm
from moco.encoders.sync_batchnorm import SyncBatchNorm
from moco.errors import InputError

BN_MODES = ("shuffle", "split", "sync", "local")


def isolate_batchnorm(encoder: nn.Module, mode: str, group_size: int = 32) -> nn.Module:
    """Replaces the encoder's BatchNorm layers for 'split' and 'sync'; returns it.

    Other modes leave it unchanged. InputError for an unknown mode, or for 'split' with a group_size below 2.
    """
    if mode not in BN_MODES:
        raise InputError(f"--bn {mode} is unknown; choose one of {', '.join(BN_MODES)}")
    if mode == "sync":
        _replace(encoder, SyncBatchNorm)
    if mode == "split":
        if group_size < 2:
            raise InputError(f"--bn-group-size must be at least 2, not {group_size}: a single sample has no statistics")
        _replace(encoder, partial(SplitBatchNorm, group_size=group_size))
    return encoder


def _replace(module: nn.Module, kind: Callable[..., nn.Module]) -> None:
    """Replaces BatchNorm layers by another kind with the same parameters and buffers."""
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
            # the same tensor objects, of any type
            layer._parameters = child._parameters
            layer._buffers = child._buffers
            setattr(module, name, layer)
        else:
            _replace(child, kind)
