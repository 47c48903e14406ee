"""Cuts and flips images together with their depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco.data.augment import Augment
from moco.data.augment.parameters import draw
from moco.data.boxes import Box, Size, rescale
from moco.data.decode import BadImage
from moco.data.depth import DepthSource
from moco.data.loader import Batch, Loader


class DepthLoader(Loader):
    """Cuts the same crop of each image and of its depth.

    `crops` is uint8 [n, 2, S, S, 3]. The second crop is the depth as bytes; `depth_of` converts it. Each depth is
    that of the nearest pixel, so missing depth is not mixed in. Threads, order and images that cannot be read are
    as in `Loader`.
    """

    def __init__(self, source: DepthSource, *arguments: Any, **settings: Any) -> None:
        super().__init__(source, *arguments, views=2, **settings)
        self.pairs = source

    def boxes(self, draws: np.ndarray, size: Size) -> list[Box]:
        return super().boxes(draws, size)[:1]

    def cut(self, index: int, draws: np.ndarray, out: Tensor, small: Tensor | None = None) -> None:
        super().cut(index, draws, out[:1])
        size = self.pairs.size(index)
        depth = self.pairs.depth(index)
        if abs(size[0] * depth.shape[1] - size[1] * depth.shape[0]) > max(*size, *depth.shape):  # more than a pixel
            shown = f"{depth.shape[1]} x {depth.shape[0]} px, the image {size[1]} x {size[0]}"
            raise BadImage(f"its depth has another shape than it: the depth is {shown}")
        box = rescale(self.boxes(draws, size)[0], size, (depth.shape[0], depth.shape[1]))
        values = torch.from_numpy(_nearest(depth, box, self.size).view(np.uint8)).view(self.size, self.size, 2)
        out[1, ..., :2] = values
        out[1, ..., 2] = 0


def _nearest(depth: np.ndarray, box: Box, side: int) -> np.ndarray:
    """Returns uint16 [side, side], little-endian: the nearest pixels of `box`."""
    top, left, h, w = box
    middle = np.arange(side) + 0.5
    rows = top + (middle * h / side).astype(int)
    columns = left + (middle * w / side).astype(int)
    return np.ascontiguousarray(depth[np.ix_(rows, columns)]).astype("<u2")


def depth_of(crops: Tensor) -> Tensor:
    """Returns the depth of a DepthLoader's crops, in metres.

    float32 [n, S, S], 0 if it is missing.
    """
    low = crops[:, 1, ..., 0].float()
    high = crops[:, 1, ..., 1].float()
    return (low + 256 * high) / 1000


def augmented_pairs(batch: Batch, augment: Augment, epoch: int) -> tuple[Tensor, Tensor]:
    """Augments a batch of images with depth.

    Returns images [n, 3, S, S], and depth float32 [n, S, S] in metres. The same samples are flipped in both. Raises
    ValueError if the augmentations rotate.
    """
    view = augment.recipe.view(0)
    if view.rotation:
        raise ValueError("depth is flipped with the image, and not rotated")
    images = augment(batch.crops[:, 0], batch.index, epoch)
    depth = depth_of(batch.crops)
    flip = draw(view, augment.seed, epoch, batch.index, 0).flip
    return images, depth if flip is None else torch.where(flip[:, None, None], depth.flip(2), depth)
