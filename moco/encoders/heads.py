"""Builds projection heads and predictors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import nn


@dataclass(frozen=True)
class Projector:
    """Describes a projection head: `layers` linear layers with ReLU between them.

    width: between the layers; None is that of the input.
    bn: BatchNorm after each layer, and no biases. The last BatchNorm has no scale and shift (Chen, Xie & He 2021;
    facebookresearch/moco-v3's `_build_mlp`).
    last_bn: with `bn`, BatchNorm also after the last layer.
    """

    layers: int = 2
    width: int | None = None
    bn: bool = False
    last_bn: bool = True


def build_mlp(dim_in: int, dim_out: int, shape: Projector) -> nn.Sequential:
    """Builds a head: [N, dim_in] -> [N, dim_out].

    Layers are numbered as in moco-v3: linear, BatchNorm if any, ReLU, linear, ...
    """
    widths = [dim_in, *[shape.width or dim_in] * (shape.layers - 1), dim_out]
    layers: list[nn.Module] = []
    for number, (narrow, wide) in enumerate(pairwise(widths), start=1):
        last = number == shape.layers
        layers.append(nn.Linear(narrow, wide, bias=not shape.bn))
        if shape.bn and (shape.last_bn or not last):
            layers.append(nn.BatchNorm1d(wide, affine=not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
