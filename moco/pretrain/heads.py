"""Builds the projection head and the predictor that the options describe."""

from __future__ import annotations

from torch import nn

from moco.encoders import Projector, build_mlp, feature_dim
from moco.pretrain.options import ResolvedPretrainOptions


def projector_of(options: ResolvedPretrainOptions) -> Projector | None:
    """Returns the projection head of --moco-mlp-layers; None without it."""
    if options.moco_mlp_layers is None:
        return None
    return Projector(options.moco_mlp_layers, options.moco_mlp_dim, options.moco_mlp_bn)


def predictor_of(options: ResolvedPretrainOptions, encoder: nn.Module) -> nn.Module | None:
    """Builds the predictor of --predictor; None without it.

    It is as wide as the projection head.
    """
    if options.predictor is None:
        return None
    width = options.moco_mlp_dim or feature_dim(encoder)
    shape = Projector(2, width, bn=True, last_bn=options.predictor == "vit")
    return build_mlp(options.moco_dim, options.moco_dim, shape)
