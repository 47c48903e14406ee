"""The network that reads depth from a layer's feature maps, and its loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DepthPredictor(nn.Module):
    """Wang & Isola 2020, appendix B: feature maps [N, C, h, h] -> depth [N, size, size] in metres.

    n times a transposed convolution (3x3, stride 2) with BatchNorm and ReLU, each doubling the side and halving the
    channels, then a 3x3 convolution to one channel. n is the most doublings that do not pass `size`. A side that
    doubling does not bring to `size` (SmallAlexNet's 15 and 7 become 60 and 56) is resized, bilinear.
    """

    def __init__(self, channels: int, side: int, size: int) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = []
        while 2 * side <= size:
            after = max(1, channels // 2)
            layers += [
                nn.ConvTranspose2d(channels, after, 3, stride=2, padding=1, output_padding=1),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            channels = after
            side = 2 * side
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        depth = self.layers(maps)
        if depth.shape[2] != self.size:
            depth = F.interpolate(depth, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return depth[:, 0]


def known_mse(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error over the pixels of [N, S, S] whose depth is known (not 0); 0 if there is none."""
    known = truth > 0
    return ((prediction - truth).square() * known).sum() / known.sum().clamp_min(1)
