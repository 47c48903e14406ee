"""The arithmetic of the augmentations on whole batches, float32 in [0, 255], each channel a plane [n, H, W].

Planes apart, an operation that mixes channels needs no copy that joins them, and a compiler can fuse all of them.
Staying in [0, 255] saves a division: every operation scales with its input, and the normalisation at the end absorbs
the factor.

Every function takes one parameter per sample and equals the torchvision function of that name applied sample by
sample. None waits for the device: no value is read back, no shape depends on data.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Planes = list[Tensor]  # float32 [n, H, W] of each channel; of RGB: red, green, blue

WHITE = 255.0
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as torchvision rounds it
BLUR_REACH = 3.5  # standard deviations kept on each side of the blur kernel; see `blur_radius`


def per_sample(values: Tensor) -> Tensor:
    """[n] -> [n, 1, 1]"""
    return values.view(-1, 1, 1)


def luma(planes: Planes) -> Tensor:
    """Grey value of each pixel: [n, H, W]."""
    r, g, b = planes
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def blend(x: Tensor, base: Tensor | float, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * base, clamped; a plane, factor [n]. Brightness (base: black), contrast (base: the
    image's mean grey) and saturation (base: the pixel's grey) are this one formula."""
    factor = per_sample(factor)
    return (factor * x + (1 - factor) * base).clamp(0, WHITE)


def shift_hue(planes: Planes, turns: Tensor) -> Planes:
    """Rotate the hue by `turns` [n], each in [-0.5, 0.5], at constant HSV value and saturation.

    With M, m and C = M - m the largest channel, the smallest and their difference, the hue in sixths of a turn from
    red is
        h = copysign(C + g + b - r - m, g - b) / C,    in [-3, 3],
    which holds in all six sectors, and the shifted channel whose own hue is c (red 0, green 2, blue -2) is
        m + C * clamp(||h + d| - 3| - 1, 0, 1),    d = 6 * turns - c, wrapped into [-3, 3].
    Multiplied by C no division is left (so no case for grey pixels, C = 0), and neither sectors nor saturation are
    ever formed.
    """
    r, g, b = planes
    high = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    hue = torch.copysign(g + b - r + high - 2 * low, g - b)
    shifted = []
    for own in (0.0, 2.0, -2.0):
        away = 6 * turns - own
        away = (away - 6 * torch.round(away / 6)).view(-1, 1, 1)
        channel = ((hue + chroma * away).abs() - 3 * chroma).abs() - chroma + low
        shifted.append(torch.minimum(torch.maximum(channel, low), high))
    return shifted


def solarize(x: Tensor) -> Tensor:
    """Invert what is at or above half intensity: min(x, white - x), continuous, so rounding cannot flip a pixel."""
    return torch.minimum(x, WHITE - x)


def blur_radius(sigma: float, size: int) -> int:
    """Taps on each side for blurs of up to `sigma` pixels on images of `size` x `size`.

    MoCo blurs with PIL, which approximates the untruncated Gaussian; SimCLR's kernel has a tenth of the image, 23
    taps at 224 pixels: 5.5 sigma at their largest sigma of 2. Both mean "the whole Gaussian", so here it is that at
    any image size. What lies beyond 3.5 sigma weighs less than 5e-4: an error below a quarter of an 8-bit step
    however hard the edges, for two thirds of the taps. A mirrored border cannot reach further than size - 1.
    """
    return min(math.ceil(BLUR_REACH * sigma), size - 1)


def blur_taps(sigma: Tensor, radius: int) -> list[Tensor]:
    """2 · radius + 1 weights [n] of sigma [n]; a sigma of 0 gives the identity."""
    squares = -0.5 / sigma.clamp(min=0.01) ** 2  # at 0.01 only the centre is above 0
    taps = [torch.exp(squares * offset**2) for offset in range(radius + 1)]
    total = taps[0] + 2 * sum(taps[1:], torch.zeros_like(sigma))
    return [taps[abs(offset)] / total for offset in range(-radius, radius + 1)]


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur of [n, C, H, W], mirrored at the borders (torchvision's `gaussian_blur`); sigma [n], 0
    leaves a sample as it is."""
    taps = [tap.view(-1, 1, 1, 1) for tap in blur_taps(sigma, radius)]
    for dimension in (2, 3):
        size = x.shape[dimension]
        at = torch.arange(size, device=x.device)
        parts = [tap * x.index_select(dimension, _reflected(at + k - radius, size)) for k, tap in enumerate(taps)]
        x = sum(parts[1:], parts[0])
    return x


def _reflected(at: Tensor, size: int) -> Tensor:
    """Positions in [0, size) that a mirror at both ends shows at positions less than a length away."""
    at = at.abs()
    return torch.where(at < size, at, 2 * (size - 1) - at)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotate square images [n, C, S, S] counter-clockwise about the centre, bilinear, black outside; degrees [n]."""
    angle = torch.deg2rad(degrees)
    cos = torch.cos(angle)
    sin = torch.sin(angle)
    zero = torch.zeros_like(angle)
    # From output to input; y runs down, hence the signs.
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
