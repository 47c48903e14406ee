"""The parameters of each augmented sample, drawn for a batch at a time.

They are functions of (seed, epoch, sample index, view).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moco.data.augment.recipes import Range, View
from moco.randomness import Purpose, stream_key, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # torchvision's numbering of ColorJitter's operations
NO_JITTER = (1.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class Parameters:
    """The parameters of each operation for n samples. None: the view never does it.

    A sample that an operation leaves out has the value of the identity.
    """

    order: Tensor | None = None  # int64 [n, 4]: the jitter's operations, first to last
    factors: Tensor | None = None  # float32 [n, 4]: brightness, contrast, saturation (factors) and hue (turns)
    grayscale: Tensor | None = None  # bool [n]
    sigma: Tensor | None = None  # float32 [n]: standard deviation of the blur in pixels, 0 = none
    solarize: Tensor | None = None  # bool [n]
    degrees: Tensor | None = None  # float32 [n]: counter-clockwise
    flip: Tensor | None = None  # bool [n]


def draw(view: View, seed: int, epoch: int, index: Tensor, number: int) -> Parameters:
    """The parameters of view `number` for the samples `index` (int64 [n]), on its device."""

    def numbers(purpose: Purpose, count: int) -> Tensor:
        return uniform(stream_key(seed, epoch, purpose, number), index, count)

    def happens(purpose: Purpose, odds: float) -> Tensor | None:
        return numbers(purpose, 1)[:, 0] < odds if odds > 0 else None

    order = factors = sigma = degrees = None
    if view.jitter is not None:
        u = numbers(Purpose.JITTER, 9)  # applied?, 4 sort keys of the order, 4 strengths
        applied = u[:, 0] < view.jitter.p
        order = torch.argsort(u[:, 1:5], dim=1, stable=True)
        strengths = [_within(u[:, 5 + k], bounds) for k, bounds in enumerate(view.jitter.ranges())]
        columns = [torch.where(applied, strength, none) for strength, none in zip(strengths, NO_JITTER, strict=True)]
        factors = torch.stack(columns, 1)
    if view.blur > 0:
        u = numbers(Purpose.BLUR, 2)  # applied?, sigma
        sigma = torch.where(u[:, 0] < view.blur, _within(u[:, 1], view.sigma), 0.0)
    if view.rotation > 0:
        degrees = _within(numbers(Purpose.ROTATION, 1)[:, 0], (-view.rotation, view.rotation))
    return Parameters(
        order=order,
        factors=factors,
        grayscale=happens(Purpose.GRAYSCALE, view.grayscale),
        sigma=sigma,
        solarize=happens(Purpose.SOLARIZE, view.solarize),
        degrees=degrees,
        flip=happens(Purpose.FLIP, view.flip),
    )


def _within(u: Tensor, bounds: Range) -> Tensor:
    return bounds[0] + u * (bounds[1] - bounds[0])
