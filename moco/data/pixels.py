"""The arithmetic of the augmentations on batches of images, float32 in [0, 255], laid out as [n, H, 3, W].

That layout, rows of one channel side by side, makes both passes of a separable blur plain matrix products, [H, H] @ [H, 3W] and
[3H, W] @ [W, W], and leaves the colour operations contiguous rows to run along. Staying in [0, 255] saves the division: every
operation scales with its input, and the normalisation at the end absorbs the factor.

Every function takes one parameter per sample and equals the torchvision function of that name applied sample by sample. Those that
end in an underscore change x; `work`, float32 [WORK_PLANES, n, H, W], is memory to compute in, made on the spot where not given:
what is used again stays in the cache, and costs no page faults. None waits for the device: no value is read back, no shape depends
on data.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WHITE = 255.0
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as torchvision rounds it
WORK_PLANES = 5
BLUR_BAND = 32  # rows per product in `blur_one_`
BLUR_REACH = 3.5  # standard deviations kept on each side of the blur kernel; see `blur_radius`


def per_sample(values: Tensor) -> Tensor:
    """[n] -> [n, 1, 1, 1]"""
    return values.view(-1, 1, 1, 1)


def luma(x: Tensor, work: Tensor | None = None) -> Tensor:
    """Grey value of each pixel: [n, H, 3, W] -> [n, H, 1, W]."""
    r, g, b = x.unbind(2)
    grey = torch.mul(r, LUMA[0], out=None if work is None else work[0])
    return grey.add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).unsqueeze(2)


def mean_luma(x: Tensor) -> Tensor:
    """Mean grey value of each image: [n, H, 3, W] -> [n, 1, 1, 1]. Row by row, then over the rows: torch splits neither sum over
    threads, so the rounding depends neither on how many there are nor on the other samples."""
    r, g, b = x.sum(3).transpose(1, 2).contiguous().sum(2).unbind(1)
    return per_sample((LUMA[0] * r + LUMA[1] * g + LUMA[2] * b) / (x.shape[1] * x.shape[3]))


def brighten_(x: Tensor, factor: Tensor, work: Tensor | None = None) -> Tensor:
    """factor * x, clamped; factor [n]."""
    return x.mul_(per_sample(factor)).clamp_(0, WHITE)


def contrast_(x: Tensor, factor: Tensor, work: Tensor | None = None) -> Tensor:
    """factor * x + (1 - factor) * mean grey of the image, clamped; factor [n]."""
    factor = per_sample(factor)
    base = (1 - factor) * mean_luma(x)
    return x.mul_(factor).add_(base).clamp_(0, WHITE)


def saturate_(x: Tensor, factor: Tensor, work: Tensor | None = None) -> Tensor:
    """factor * x + (1 - factor) * grey of the pixel, clamped; factor [n]."""
    return torch.lerp(luma(x, work), x, per_sample(factor), out=x).clamp_(0, WHITE)


def grey_(x: Tensor, work: Tensor | None = None) -> Tensor:
    """All three channels become the grey value."""
    return x.copy_(luma(x, work).expand_as(x))


def shift_hue_(x: Tensor, turns: Tensor, work: Tensor | None = None) -> Tensor:
    """Rotate the hue by `turns` [n], each in [-0.5, 0.5], at constant HSV value and saturation.

    With M, m and C = M - m the largest channel, the smallest and their difference, the hue in sixths of a turn from red is
        h = copysign(C + g + b - r - m, g - b) / C,    in [-3, 3],
    which holds in all six sectors, and the shifted channel whose own hue is c (red 0, green 2, blue -2) is
        m + C * clamp(||h + d| - 3| - 1, 0, 1),    d = 6 * turns - c, wrapped into [-3, 3].
    Multiplied by C no division is left (so no case for grey pixels, C = 0), and neither sectors nor saturation are ever formed.
    """
    r, g, b = x.unbind(2)
    high, low, chroma, hue, part = torch.empty((WORK_PLANES, *r.shape), device=x.device) if work is None else work
    torch.maximum(torch.maximum(r, g, out=high), b, out=high)
    torch.minimum(torch.minimum(r, g, out=low), b, out=low)
    torch.sub(high, low, out=chroma)
    torch.sub(g, b, out=part)
    torch.sub(g, r, out=hue).add_(b).add_(high).sub_(low, alpha=2).copysign_(part)
    away = 6 * turns.view(-1, 1, 1, 1) - torch.tensor([0.0, 2.0, -2.0], device=x.device)
    away -= 6 * torch.round(away / 6)
    for channel in range(3):
        torch.addcmul(hue, chroma, away[..., channel], out=part)
        part.abs_().sub_(chroma, alpha=3).abs_().sub_(chroma).add_(low)
        torch.clamp(part, low, high, out=x.select(2, channel))
    return x


def solarize_(x: Tensor, work: Tensor | None = None) -> Tensor:
    """Invert what is at or above half intensity: min(x, white - x), continuous, so rounding cannot flip a pixel."""
    return torch.minimum(x, WHITE - x, out=x)


def blur_radius(sigma: float, size: int) -> int:
    """Taps on each side for blurs of up to `sigma` pixels on images of `size` x `size`.

    MoCo blurs with PIL, which approximates the untruncated Gaussian; SimCLR's kernel has a tenth of the image, 23 taps at 224
    pixels: 5.5 sigma at their largest sigma of 2. Both mean "the whole Gaussian", so here it is that at any image size. What lies
    beyond 3.5 sigma weighs less than 5e-4: an error below a quarter of an 8-bit step however hard the edges, for two thirds of
    the taps. A mirrored border cannot reach further than size - 1.
    """
    return min(math.ceil(BLUR_REACH * sigma), size - 1)


def blur_matrices(sigma: Tensor, radius: int, size: int) -> Tensor:
    """B [n, size, size + 2 * radius], sigma [n]: B @ a column padded by `radius` on either side is the column blurred. Row i holds
    the normalised taps from i to i + 2 * radius; a sigma of 0 has its centre tap alone."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    taps = torch.exp(-0.5 * (offset / sigma.clamp(min=0.01)[:, None]) ** 2)  # at 0.01 only the centre is above 0
    taps = taps * (taps > 1e-12)  # no subnormal numbers: they slow a CPU's multiplications fourfold and add nothing
    taps = taps / taps.sum(1, keepdim=True)
    wide = size + 2 * radius
    matrices = sigma.new_zeros(len(sigma), size, wide)
    matrices.as_strided((len(sigma), size, len(offset)), (size * wide, wide + 1, 1)).copy_(taps[:, None])
    return matrices


def fold(matrices: Tensor, before: int, after: int) -> Tensor:
    """Blur matrices for columns that are not padded but mirrored: what the first `before` and the last `after` columns of each
    matrix weigh lies outside the image and goes to the pixels that the border reflects there."""
    if not before and not after:
        return matrices
    matrices = matrices.clone()
    end = matrices.shape[-1] - after
    matrices[..., before + 1 : 2 * before + 1] += matrices[..., :before].flip(-1)
    matrices[..., end - 1 - after : end - 1] += matrices[..., end:].flip(-1)
    return matrices[..., before:end]


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Separable Gaussian blur, mirrored at the borders (torchvision's `gaussian_blur`); sigma [n], 0 leaves a sample as it is."""
    n, height, _, width = x.shape
    matrix = fold(blur_matrices(sigma, radius, height), radius, radius)
    columns = torch.bmm(matrix, x.reshape(n, height, 3 * width))
    return torch.bmm(columns.view(n, 3 * height, width), matrix.mT).view_as(x)


def blur_one_(image: Tensor, sigma: Tensor, radius: int, work: Tensor) -> None:
    """`blur` of one square image [S, 3, S], sigma [1], as suits a CPU: the same product in bands, which leaves out most zeros."""
    size = len(image)
    inner = blur_matrices(sigma, radius, min(BLUR_BAND, size))[0]
    bands = []
    for first in range(0, size, BLUR_BAND):
        last = min(first + BLUR_BAND, size)
        before, after = max(0, radius - first), max(0, last + radius - size)
        matrix = fold(inner[: last - first, : last - first + 2 * radius], before, after)
        bands.append((slice(first, last), slice(first - radius + before, last + radius - after), matrix))
    pixels, columns = image.view(size, 3 * size), work.flatten()[: 3 * size * size].view(size, 3 * size)
    for band, reach, matrix in bands:
        torch.mm(matrix, pixels[reach], out=columns[band])
    columns, pixels = columns.view(3 * size, size), image.view(3 * size, size)
    for band, reach, matrix in bands:
        torch.mm(columns[:, reach], matrix.mT, out=pixels[:, band])


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
