"""Errors of predicted depth, over all pixels whose depth is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moco.errors import InputError

NEAREST = 1e-3  # metres: a prediction at or behind the camera counts as this near in a ratio


def depth_errors(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Returns the errors of predicted depths, by name.

    prediction, truth: [...], in metres. Pixels with truth 0 are left out.
    depth_mse: mean squared error in m², which Wang & Isola (2020) print.
    depth_rmse: its root, in m.
    depth_abs_rel: mean |p - d|/d.
    depth_delta1: percentage with max(p/d, d/p) < 1.25 (Eigen, Puhrsch & Fergus, NeurIPS 2014).
    InputError if no depth is known.
    """
    known = truth > 0
    if not known.any():
        raise InputError("no pixel of these images has a depth: check the depth files")
    p = prediction[known].double()
    d = truth[known].double()
    mse = (p - d).square().mean().item()
    near = p.clamp_min(NEAREST)
    return {
        "depth_mse": mse,
        "depth_rmse": math.sqrt(mse),
        "depth_abs_rel": ((p - d).abs() / d).mean().item(),
        "depth_delta1": 100 * (torch.maximum(near / d, d / near) < 1.25).double().mean().item(),
    }
