"""The batched half of the augmentations: uint8 crops in, normalised float images out, on the device the crops are on.

Workers decode and crop; everything photometric happens here, for the whole batch at once, with parameters of its own for each
sample. torchvision's transforms draw once per call (so once per batch, on a batch) from a generator that is a state; here each
parameter is a function of (seed, epoch, sample index, view), so a sample looks the same in any batch, on any rank, after any
resume. Results equal torchvision's functional ops on float images, sample by sample, in the drawn order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moco.data import pixels
from moco.data.recipes import RECIPES, Jitter, Range, Recipe, View, find_recipe
from moco.errors import InputError
from moco.randomness import Purpose, stream_key, uniform

__all__ = ["RECIPES", "Augment", "Jitter", "Parameters", "Recipe", "View", "draw", "find_recipe"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # torchvision's numbering of ColorJitter's operations


@dataclass(frozen=True)
class Parameters:
    """What happens to each of n samples. None: the recipe never does it. A sample left out has the identity's value."""

    order: Tensor | None  # int64 [n, 4]: the jitter's operations, first to last
    factors: Tensor | None  # float32 [n, 4]: brightness, contrast, saturation (1 = none) and hue (turns, 0 = none)
    grayscale: Tensor | None  # bool [n]
    sigma: Tensor | None  # float32 [n]: standard deviation of the blur in pixels (0 = none)
    solarize: Tensor | None  # bool [n]
    degrees: Tensor | None  # float32 [n]: counter-clockwise
    flip: Tensor | None  # bool [n]


def draw(view: View, seed: int, epoch: int, index: Tensor, number: int) -> Parameters:
    """The parameters of view `number` for the samples `index` (int64 [n]): f(seed, epoch, index, number) alone."""

    def numbers(purpose: Purpose, count: int) -> Tensor:
        return uniform(stream_key(seed, epoch, purpose, number), index, count)

    def happens(purpose: Purpose, odds: float) -> Tensor | None:
        return numbers(purpose, 1)[:, 0] < odds if odds > 0 else None

    order = factors = sigma = degrees = None
    if view.jitter is not None:
        u = numbers(Purpose.JITTER, 9)  # applied?, 4 sort keys of the order, 4 strengths
        order = torch.argsort(u[:, 1:5], dim=1, stable=True)
        strengths = [_within(u[:, 5 + k], bounds) for k, bounds in enumerate(view.jitter.ranges())]
        applied = u[:, :1] < view.jitter.p
        identity = [1.0, 1.0, 1.0, 0.0]
        columns = [torch.where(applied[:, 0], s, torch.full_like(s, one)) for s, one in zip(strengths, identity)]
        factors = torch.stack(columns, 1)
    if view.blur > 0:
        u = numbers(Purpose.BLUR, 2)  # applied?, sigma
        sigma = torch.where(u[:, 0] < view.blur, _within(u[:, 1], view.sigma), torch.zeros_like(u[:, 1]))
    if view.rotation > 0:
        degrees = _within(numbers(Purpose.ROTATION, 1)[:, 0], (-view.rotation, view.rotation))
    return Parameters(
        order,
        factors,
        happens(Purpose.GRAYSCALE, view.grayscale),
        sigma,
        happens(Purpose.SOLARIZE, view.solarize),
        degrees,
        happens(Purpose.FLIP, view.flip),
    )


def _within(u: Tensor, bounds: Range) -> Tensor:
    return bounds[0] + u * (bounds[1] - bounds[0])


class Augment:
    """augment(crops, index, epoch, view) -> images.

    crops: uint8 [n, S, S, 3]; index: int64 [n], the samples' numbers in the data set, on the crops' device.
    Returns `dtype` [n, 3, S, S] in channels_last memory format, normalised by the recipe's mean and std. Arithmetic is float32
    throughout, whatever `dtype` and autocast say; only the result is rounded. InputError for crops that are not uint8 [n, S, S, 3].
    """

    def __init__(self, recipe: Recipe, seed: int, *, compile: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.recipe = recipe
        self.seed = seed
        self.dtype = dtype

    @torch.no_grad()
    def __call__(self, crops: Tensor, index: Tensor, epoch: int, view: int = 0) -> Tensor:
        _check(crops, index)
        recipe = self.recipe.view(view)
        with torch.autocast(crops.device.type, enabled=False):
            x = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255
            x = apply(x, draw(recipe, self.seed, epoch, index, view), recipe)
            mean = torch.tensor(self.recipe.mean).view(3, 1, 1).to(x.device, non_blocking=True)
            std = torch.tensor(self.recipe.std).view(3, 1, 1).to(x.device, non_blocking=True)
            return ((x - mean) / std).to(self.dtype, memory_format=torch.channels_last)


def apply(x: Tensor, parameters: Parameters, view: View) -> Tensor:
    """The view's operations on planar float images [n, 3, H, W] in [0, 1]; see `View` for their order."""
    p = parameters
    if p.degrees is not None:
        x = pixels.rotate(x, p.degrees)
    if p.grayscale is not None and view.grayscale_first:
        x = _grayscale(x, p.grayscale)
    if p.order is not None and p.factors is not None:
        x = _jitter(x, p.order, p.factors)
    if p.grayscale is not None and not view.grayscale_first:
        x = _grayscale(x, p.grayscale)
    if p.sigma is not None:
        x = pixels.blur(x, p.sigma, pixels.blur_radius(view.sigma[1], x.shape[-1]))
    if p.solarize is not None:
        x = torch.where(pixels.per_sample(p.solarize), pixels.solarize(x), x)
    if p.flip is not None:
        x = pixels.flip(x, p.flip)
    return x


def _grayscale(x: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(pixels.per_sample(chosen), pixels.luma(x), x)


def _jitter(x: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Four rounds; in each, every sample undergoes the operation that its order puts there. Without branches on data: the three
    blends differ in their base only, and the hue shift is taken where it is due."""
    for place in range(4):
        operation = order[:, place]
        factor = pixels.per_sample(factors.gather(1, operation[:, None]))
        due = pixels.per_sample(operation)
        grey = pixels.luma(x)
        base = torch.where(due == SATURATION, grey, torch.where(due == CONTRAST, pixels.spatial_mean(grey), 0.0))
        blended = pixels.blend(x, base, factor)
        x = torch.where(due == HUE, pixels.shift_hue(x, factors[:, HUE, None, None]), blended)
    return x


def _check(crops: Tensor, index: Tensor) -> None:
    if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[-1] != 3:
        raise InputError(f"augmentation takes uint8 crops [n, S, S, 3], not {crops.dtype} {list(crops.shape)}")
    if index.shape != crops.shape[:1]:
        raise InputError(f"augmentation takes one sample index per crop: {crops.shape[0]} crops, {list(index.shape)} indices")
