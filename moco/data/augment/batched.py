"""Computes the augmentations of whole batches.

Values are float32 in [0, 255]. Each channel is a plane [n, H, W]. With separate planes, an operation that mixes
channels needs no copy that joins them, and a compiler can fuse all of them. The range [0, 255] saves a division: every
operation scales with its input, and the factor is part of the normalisation at the end.

Every function takes one parameter per sample, and equals the torchvision function of that name applied sample by
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
    """Reshapes [n] to [n, 1, 1]."""
    return values.view(-1, 1, 1)


def luma(planes: Planes) -> Tensor:
    """Returns the grey value of each pixel: [n, H, W]."""
    r, g, b = planes
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def blend(x: Tensor, base: Tensor | float, factor: Tensor) -> Tensor:
    """Returns factor * x + (1 - factor) * base, clamped.

    x: a plane. factor: [n]. Three operations use this formula. Their bases are black for brightness, the image's mean
    grey for contrast, and the pixel's grey for saturation.
    """
    factor = per_sample(factor)
    return (factor * x + (1 - factor) * base).clamp(0, WHITE)


def shift_hue(planes: Planes, turns: Tensor) -> Planes:
    """Rotates the hue by `turns`, at constant HSV value and saturation.

    turns: [n], each in [-0.5, 0.5]. Let M and m be the largest and the smallest channel, and C = M - m. The hue in
    sixths of a turn from red is

          h = copysign(C + g + b - r - m, g - b) / C,    in [-3, 3],

    in all six sectors. Let c be the hue of a channel: red 0, green 2, blue -2. The shifted channel is

          m + C * clamp(||h + d| - 3| - 1, 0, 1),    d = 6 * turns - c, wrapped into [-3, 3].

    The code multiplies by C, so it has no division, and grey pixels (C = 0) need no special case. Neither sectors nor
    saturation are computed.
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
    """Inverts what is at or above half intensity: min(x, white - x).

    The function is continuous, so rounding cannot flip a pixel.
    """
    return torch.minimum(x, WHITE - x)


def blur_radius(sigma: float, size: int) -> int:
    """Returns the number of taps on each side of the blur's centre.

    It is for blurs of up to `sigma` pixels on images of `size` x `size`. MoCo blurs with PIL, which approximates the
    untruncated Gaussian. SimCLR's kernel is a tenth of the image: 23 taps at 224 pixels, 5.5 sigma at their largest
    sigma of 2. Both are in effect the whole Gaussian, so here it is the whole one at any image size. The weights beyond
    3.5 sigma sum to less than 5e-4. Without them the error is below a quarter of an 8-bit step for any edges, and a
    third of the taps is saved. A mirrored border cannot reach further than size - 1.
    """
    return min(math.ceil(BLUR_REACH * sigma), size - 1)


def blur_taps(sigma: Tensor, radius: int) -> list[Tensor]:
    """Returns the 2 · radius + 1 weights [n] of a blur.

    sigma: [n]; 0 gives the identity.
    """
    squares = -0.5 / sigma.clamp(min=0.01) ** 2  # at 0.01 only the centre is above 0
    taps = [torch.exp(squares * offset**2) for offset in range(radius + 1)]
    total = taps[0] + 2 * sum(taps[1:], torch.zeros_like(sigma))
    return [taps[abs(offset)] / total for offset in range(-radius, radius + 1)]


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blurs with a separable Gaussian, mirrored at the borders.

    As torchvision's `gaussian_blur`. x: [n, C, H, W]. sigma: [n]; 0 leaves a sample as it is.
    """
    taps = [tap.view(-1, 1, 1, 1) for tap in blur_taps(sigma, radius)]
    for dimension in (2, 3):
        size = x.shape[dimension]
        at = torch.arange(size, device=x.device)
        parts = [tap * x.index_select(dimension, _reflected(at + k - radius, size)) for k, tap in enumerate(taps)]
        x = sum(parts[1:], parts[0])
    return x


def _reflected(at: Tensor, size: int) -> Tensor:
    """Mirrors positions at both ends of [0, size).

    at: positions less than one length outside.
    """
    at = at.abs()
    return torch.where(at < size, at, 2 * (size - 1) - at)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotates square images counter-clockwise about the centre.

    x: [n, C, S, S]. degrees: [n]. Bilinear; black outside.
    """
    angle = torch.deg2rad(degrees)
    cos = torch.cos(angle)
    sin = torch.sin(angle)
    zero = torch.zeros_like(angle)
    # From output to input; y runs down, hence the signs.
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
