"""The arithmetic of the augmentations on batches of planar images, float32 in [0, 1], shape [n, 3, H, W].

Every function takes one parameter per sample and equals the torchvision function of that name applied sample by sample.
None waits for the device: no value is read back, no shape depends on data.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as torchvision rounds it
BLUR_REACH = 3.5  # standard deviations kept on each side of the blur kernel; see `blur_radius`


def per_sample(values: Tensor) -> Tensor:
    """[n] -> [n, 1, 1, 1]"""
    return values.view(-1, 1, 1, 1)


def luma(x: Tensor) -> Tensor:
    """Grey value of each pixel: [n, 3, H, W] -> [n, 1, H, W]."""
    return torch.add(torch.add(x[:, :1] * LUMA[0], x[:, 1:2], alpha=LUMA[1]), x[:, 2:], alpha=LUMA[2])


def spatial_mean(x: Tensor) -> Tensor:
    """Mean over the pixels, [n, C, H, W] -> [n, C, 1, 1]. Row by row first: a sum that torch never splits over threads, so
    that its rounding depends neither on their number nor on the other samples."""
    return (x.sum(-1).sum(-1) / (x.shape[-1] * x.shape[-2]))[..., None, None]


def blend(x: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * base, clamped to [0, 1]: brightness (base 0), contrast (base: mean grey), saturation
    (base: grey) are this one formula."""
    return (factor * x + (1 - factor) * base).clamp_(0, 1)


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue by `turns` ([n, 1, 1] each in [-0.5, 0.5]) at constant HSV value and saturation.

    With M, m the largest and smallest channel and h the hue in sixths of a turn, each channel of the result is m + (M - m) * a
    trapezoid of h + 6 turns, so neither saturation nor the six cases of the way back from HSV are ever formed.
    """
    r, g, b = x.unbind(1)
    high = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    # Sixths of a turn, measured from red, green or blue, whichever is largest (ties: in this order, as torchvision has it).
    blue = torch.add(r - g, chroma, alpha=4)
    green = torch.add(b - r, chroma, alpha=2)
    sixths = torch.where(high == r, g - b, torch.where(high == g, green, blue))
    # A grey pixel has no hue; any value does, since its chroma of 0 multiplies what follows. The floor keeps 0/0 away.
    hue = sixths / chroma.clamp(min=1e-12) + 6 * turns
    hue = hue - 6 * torch.floor(hue / 6)
    red = (hue - 3).abs_().sub_(1).clamp_(0, 1)
    green = (2 - (hue - 2).abs_()).clamp_(0, 1)
    blue = (2 - (hue - 4).abs_()).clamp_(0, 1)
    return torch.stack([torch.addcmul(low, chroma, part) for part in (red, green, blue)], 1)


def solarize(x: Tensor) -> Tensor:
    """Invert what is at or above one half: min(x, 1 - x), continuous, so rounding cannot flip a pixel."""
    return torch.minimum(x, 1 - x)


def blur_radius(sigma: float, size: int) -> int:
    """Taps on each side for blurs of up to `sigma` pixels on `size` x `size` images.

    MoCo blurs with PIL, which approximates the untruncated Gaussian; SimCLR's kernel has a tenth of the image, 23 taps at 224
    pixels: 5.5 sigma at their largest sigma of 2. Both mean "the whole Gaussian", at any image size. What lies beyond
    3.5 sigma (+ half a pixel) weighs < 5e-4, an error below 1/4 of an 8-bit step however hard the edges, at two thirds of the taps.
    Mirrored borders bound it by size - 1.
    """
    return min(math.ceil(BLUR_REACH * sigma), size - 1)


def gaussian_taps(sigma: Tensor, radius: int) -> Tensor:
    """Normalised kernels [n, 2 * radius + 1] of the standard deviations `sigma` [n]; those of sigma 0 are one centre tap."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (offset / sigma.clamp(min=0.01)[:, None]) ** 2)
    return weight / weight.sum(1, keepdim=True)


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur, mirrored at the borders (torchvision's `gaussian_blur`); sigma [n], 0 leaves a sample as it is."""
    taps = gaussian_taps(sigma, radius)
    weights = [per_sample(column) for column in taps.unbind(1)]
    height, width = x.shape[-2:]
    padded = F.pad(x, (radius, radius, 0, 0), mode="reflect")
    rows = sum(w * padded[..., k : k + width] for k, w in enumerate(weights))
    padded = F.pad(rows, (0, 0, radius, radius), mode="reflect")
    return sum(w * padded[..., k : k + height, :] for k, w in enumerate(weights))


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre, bilinear, black outside; degrees [n]."""
    height, width = x.shape[-2:]
    angle = torch.deg2rad(degrees)
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    # From output to input in coordinates that span [-1, 1] on either side: y runs down, hence the signs.
    theta = torch.stack([cos, -sin * (height / width), zero, sin * (width / height), cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def flip(x: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left and right where `flipped` ([n] bool)."""
    return torch.where(per_sample(flipped), x.flip(-1), x)
