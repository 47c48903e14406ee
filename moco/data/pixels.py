"""The arithmetic of the augmentations on batches of images, float32 in [0, 255], laid out as [n, H, 3, W].

That layout, rows of one channel side by side, makes both passes of a separable blur plain matrix products, [H, H] @ [H, 3W] and
[3H, W] @ [W, W], and leaves the colour operations contiguous rows to run along. Staying in [0, 255] saves the division: every
operation scales with its input, and the normalisation at the end absorbs the factor.

Every function takes one parameter per sample and equals the torchvision function of that name applied sample by sample. None
waits for the device: no value is read back, no shape depends on data.
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
    return (r * LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])


def mean_luma(x: Tensor) -> Tensor:
    """Mean grey value of each image: [n, H, 3, W] -> [n, 1, 1, 1]. Row by row, then over the rows: torch splits neither sum over
    threads, so the rounding depends neither on how many there are nor on the other samples."""
    return per_sample(luma(x).sum(-1).flatten(1).sum(-1) / (x.shape[1] * x.shape[3]))


def brighten(x: Tensor, factor: Tensor) -> Tensor:
    """factor * x, clamped; factor [n]."""
    return (x * per_sample(factor)).clamp_(0, WHITE)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * mean grey of the image, clamped; factor [n]."""
    factor = per_sample(factor)
    return (x * factor).add_((1 - factor) * mean_luma(x)).clamp_(0, WHITE)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * grey of the pixel, clamped; factor [n]."""
    return torch.lerp(luma(x), x, per_sample(factor)).clamp_(0, WHITE)


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue by `turns` [n], each in [-0.5, 0.5], at constant HSV value and saturation.

    With M, m and C = M - m the largest channel, the smallest and their difference, the hue in sixths of a turn from red is
        h = copysign(C + g + b - r - m, g - b) / C,    in [-3, 3],
    which holds in all six sectors, and the shifted channel whose own hue is c (red 0, green 2, blue -2) is
        m + C * clamp(||h + d| - 3| - 1, 0, 1),    d = 6 * turns - c, wrapped into [-3, 3].
    Multiplied by C no division is left (so no case for grey pixels, C = 0), and neither sectors nor saturation are ever formed.
    """
    r, g, b = x.unbind(2)
    high = torch.maximum(r, g).clamp_(min=b)
    low = torch.minimum(r, g).clamp_(max=b)
    chroma = high - low
    hue = (g - r).add_(b).add_(high).sub_(low, alpha=2).copysign_(g - b)
    shortfall = low - chroma
    reach = 3 * chroma
    out = torch.empty_like(x)
    for channel, own in enumerate((0.0, 2.0, -2.0)):
        away = 6 * turns - own
        away = (away - 6 * torch.round(away / 6)).view(-1, 1, 1)
        part = torch.addcmul(hue, chroma, away).abs_().sub_(reach).abs_().add_(shortfall)
        torch.clamp(part, low, high, out=out.select(2, channel))
    return out


def solarize(x: Tensor) -> Tensor:
    """Invert what is at or above half intensity: min(x, white - x), continuous, so rounding cannot flip a pixel."""
    return torch.minimum(x, WHITE - x)


def blur_radius(sigma: float, size: int) -> int:
    """Taps on each side for blurs of up to `sigma` pixels on images of `size` x `size`.

    MoCo blurs with PIL, which approximates the untruncated Gaussian; SimCLR's kernel has a tenth of the image, 23 taps at 224
    pixels: 5.5 sigma at their largest sigma of 2. Both mean "the whole Gaussian", so here it is that at any image size. What lies
    beyond 3.5 sigma weighs less than 5e-4: an error below a quarter of an 8-bit step however hard the edges, for two thirds of
    the taps. A mirrored border cannot reach further than size - 1.
    """
    return min(math.ceil(BLUR_REACH * sigma), size - 1)


def blur_matrices(sigma: Tensor, radius: int, size: int) -> Tensor:
    """A [n, size, size] such that A @ column is the column blurred, mirrored at its ends; sigma [n], 0 gives the identity."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    taps = torch.exp(-0.5 * (offset / sigma.clamp(min=0.01)[:, None]) ** 2)  # at 0.01 only the centre is above 0
    taps = taps / taps.sum(1, keepdim=True)
    wide = size + 2 * radius
    matrix = sigma.new_zeros(len(sigma), size, wide)
    # Row i of the padded matrix holds the taps at columns i .. i + 2 * radius: a strided window that slides by one per row.
    matrix.as_strided((len(sigma), size, len(offset)), (size * wide, wide + 1, 1)).copy_(taps[:, None])
    inside = matrix[:, :, radius : radius + size]
    if radius:
        inside[:, :, 1 : radius + 1] += matrix[:, :, :radius].flip(2)
        inside[:, :, size - 1 - radius : size - 1] += matrix[:, :, -radius:].flip(2)
    return inside


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur, mirrored at the borders (torchvision's `gaussian_blur`); sigma [n], 0 leaves a sample as it is."""
    n, height, _, width = x.shape
    matrix = blur_matrices(sigma, radius, height)
    columns = torch.bmm(matrix, x.reshape(n, height, 3 * width))
    return torch.bmm(columns.view(n, 3 * height, width), matrix.mT).view_as(x)


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


def blur_banded_(image: Tensor, sigma: Tensor, radius: int, band: int = 32) -> None:
    """`blur` in place for one image [H, 3, W], sigma [1]: the same matrix, in bands of rows, without most of its zeros."""
    height, _, width = image.shape
    matrix = blur_matrices(sigma, radius, height)[0]
    bands = [(k, min(k + band, height)) for k in range(0, height, band)]
    spans = [(first, last, max(0, first - radius), min(height, last + radius)) for first, last in bands]
    source, columns = image.view(height, 3 * width), torch.empty_like(image).view(height, 3 * width)
    for first, last, low, high in spans:
        torch.mm(matrix[first:last, low:high], source[low:high], out=columns[first:last])
    source, rows = columns.view(3 * height, width), image.view(3 * height, width)
    for first, last, low, high in spans:
        torch.mm(source[:, low:high], matrix[first:last, low:high].mT, out=rows[:, first:last])
