"""Defines the network that reads depth from feature maps, and its loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DepthPredictor(nn.Module):
    """Maps features to depth in metres.

    [N, C, h, h] -> [N, size, size]. The network is that of Wang & Isola 2020, appendix B. It has n transposed
    convolutions (3x3, stride 2) with BatchNorm and ReLU. Each doubles the side and halves the channels. A 3x3
    convolution to one channel follows. n is the largest number of doublings that does not pass `size`. A side that
    doubling does not bring to `size` is resized, bilinear: SmallAlexNet's sides of 15 and 7 become 60 and 56.
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
    """Returns the mean squared error over pixels with known depth.

    Inputs are [N, S, S]; unknown depth is 0. The error is 0 without a known pixel.
    """
    known = truth > 0
    return ((prediction - truth).square() * known).sum() / known.sum().clamp_min(1)
