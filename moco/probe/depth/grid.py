"""Draws predicted depth beside the true one."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco.data.depth_crops import DepthLoader

SHOWN = 8  # validation images, evenly spread


def grid(val: DepthLoader, predicted: Tensor, truth: Tensor) -> bytes:
    """Draws a PNG of images and depth.

    It has a row for each of SHOWN images of `val`, with image, true and predicted depth [n, S, S] in metres. Near
    pixels are bright. The farthest true pixel of all rows is nearly black. Missing depth is black.
    """
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(SHOWN, len(truth))).astype(int))
    farthest = float(truth[chosen].max().clamp_min(1e-6))
    crop = torch.empty((2, val.size, val.size, 3), dtype=torch.uint8)
    rows = []
    for number in chosen:
        val.cut(int(number), val.draws(0, np.array([number]))[0], crop)
        true = _grey(truth[number], farthest) * (truth[number] > 0)
        ours = _grey(predicted[number], farthest)
        rows.append(torch.cat([crop[0], _as_colours(true), _as_colours(ours)], dim=1))
    packed = io.BytesIO()
    Image.fromarray(torch.cat(rows).numpy()).save(packed, "PNG")
    return packed.getvalue()


def _grey(depth: Tensor, farthest: float) -> Tensor:
    return 255 - 235 * (depth / farthest).clamp(0, 1)


def _as_colours(grey: Tensor) -> Tensor:
    return grey.round().to(torch.uint8)[..., None].expand(*grey.shape, 3)
