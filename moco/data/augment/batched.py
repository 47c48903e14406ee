"""The arithmetic of the augmentations on whole batches, float32 in [0, 255], laid out as [n, H, C, W].

That layout, rows of one channel side by side, makes both passes of a separable blur plain matrix products, [H, H] @
[H, CW] and [CH, W] @ [W, W]. Staying in [0, 255] saves a division: every operation scales with its input, and the
normalisation at the end absorbs the factor.

Every function takes one parameter per sample and equals the torchvision function of that name applied sample by
sample. None waits for the device: no value is read back, no shape depends on data.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WHITE = 255.0
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as torchvision rounds it
BLUR_REACH = 3.5  # standard deviations kept on each side of the blur kernel; see `blur_radius`


def per_sample(values: Tensor) -> Tensor:
    """[n] -> [n, 1, 1, 1]"""
    return values.view(-1, 1, 1, 1)


def luma(x: Tensor) -> Tensor:
    """Grey value of each pixel: [n, H, 3, W] -> [n, H, 1, W]."""
    r, g, b = x.split(1, dim=2)
    return LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def blend(x: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * base, clamped; factor [n]. Brightness (base: black), contrast (base: the image's mean
    grey) and saturation (base: the pixel's grey) are this one formula."""
    factor = per_sample(factor)
    return (factor * x + (1 - factor) * base).clamp(0, WHITE)


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue by `turns` [n], each in [-0.5, 0.5], at constant HSV value and saturation.

    With M, m and C = M - m the largest channel, the smallest and their difference, the hue in sixths of a turn from
    red is
        h = copysign(C + g + b - r - m, g - b) / C,    in [-3, 3],
    which holds in all six sectors, and the shifted channel whose own hue is c (red 0, green 2, blue -2) is
        m + C * clamp(||h + d| - 3| - 1, 0, 1),    d = 6 * turns - c, wrapped into [-3, 3].
    Multiplied by C no division is left (so no case for grey pixels, C = 0), and neither sectors nor saturation are
    ever formed.
    """
    r, g, b = x.unbind(2)
    high = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    hue = torch.copysign(g + b - r + high - 2 * low, g - b)
    channels = []
    for own in (0.0, 2.0, -2.0):
        away = 6 * turns - own
        away = (away - 6 * torch.round(away / 6)).view(-1, 1, 1)
        channel = ((hue + chroma * away).abs() - 3 * chroma).abs() - chroma + low
        channels.append(torch.minimum(torch.maximum(channel, low), high))
    return torch.stack(channels, 2)


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


def blur_matrices(sigma: Tensor, radius: int, size: int) -> Tensor:
    """A [n, size, size] of sigma [n]: A @ column is the column blurred, mirrored at its ends.

    A sigma of 0 gives the identity.
    """
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    taps = torch.exp(-0.5 * (offset / sigma.clamp(min=0.01)[:, None]) ** 2)  # at 0.01 only the centre is above 0
    taps = taps * (taps > 1e-12)  # subnormal numbers add nothing and slow multiplications down
    taps = taps / taps.sum(1, keepdim=True)
    # For a padded column first: row i holds the taps from i to i + 2 * radius, a window that moves on by one per row.
    wide = size + 2 * radius
    padded = sigma.new_zeros(len(sigma), size, wide)
    padded.as_strided((len(sigma), size, len(offset)), (size * wide, wide + 1, 1)).copy_(taps[:, None])
    # Then what the padding weighs goes to the pixels that the border mirrors there.
    matrices = padded[..., radius : radius + size].clone()
    matrices[..., 1 : radius + 1] += padded[..., :radius].flip(-1)
    matrices[..., size - 1 - radius : size - 1] += padded[..., radius + size :].flip(-1)
    return matrices


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur, mirrored at the borders (torchvision's `gaussian_blur`); sigma [n], 0 leaves a sample
    as it is.

    As products with matrices that are mostly zeros: twenty times the additions, and still the quickest on hardware
    for products.
    """
    n, height, channels, width = x.shape
    matrices = blur_matrices(sigma, radius, height)
    columns = torch.bmm(matrices, x.reshape(n, height, channels * width))
    return torch.bmm(columns.view(n, channels * height, width), matrices.mT).view_as(x)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotate square images counter-clockwise about the centre, bilinear, black outside; degrees [n]."""
    angle = torch.deg2rad(degrees)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    # From output to input; y runs down, hence the signs.
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    planar = x.transpose(1, 2)
    grid = F.affine_grid(theta, list(planar.shape), align_corners=False)
    rotated = F.grid_sample(planar, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return rotated.transpose(1, 2).contiguous()
