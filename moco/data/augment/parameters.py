"""Draws the parameters of each augmented sample, a batch at a time.

They are functions of (seed, epoch, sample index, view).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moco.data.augment.recipes import Range, View
from moco.randomness import Purpose, stream_key, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # torchvision's numbering of ColorJitter's operations
NO_JITTER = (1.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class Parameters:
    """Holds the parameters of each operation for n samples.

    None if the view never does the operation. A sample that an operation leaves out has the value of the identity.
    """

    order: Tensor | None = None  # int64 [n, 4]: the jitter's operations, first to last
    factors: Tensor | None = None  # float32 [n, 4]: brightness, contrast, saturation (factors) and hue (turns)
    grayscale: Tensor | None = None  # bool [n]
    sigma: Tensor | None = None  # float32 [n]: standard deviation of the blur in pixels, 0 = none
    solarize: Tensor | None = None  # bool [n]
    degrees: Tensor | None = None  # float32 [n]: counter-clockwise
    flip: Tensor | None = None  # bool [n]


PURPOSES = (Purpose.JITTER, Purpose.GRAYSCALE, Purpose.BLUR, Purpose.SOLARIZE, Purpose.ROTATION, Purpose.FLIP)
MOST_DRAWS = 9  # numbers of one purpose for a sample


def stream_keys(seed: int, epoch: int, number: int) -> list[int]:
    """Returns the keys of view `number`, one for each of PURPOSES."""
    return [stream_key(seed, epoch, purpose, number) for purpose in PURPOSES]


def draw(view: View, seed: int, epoch: int, index: Tensor, number: int) -> Parameters:
    """Draws the parameters of view `number`, on the device of `index`.

    index: int64 [n], the samples.
    """
    return draw_with(view, stream_keys(seed, epoch, number), index)


def draw_with(view: View, keys: Sequence[int | Tensor], index: Tensor, steps: Tensor | None = None) -> Parameters:
    """Draws as `draw` does, with the view's `stream_keys`.

    steps: see `moco.randomness.uniform`.
    """
    key_of = dict(zip(PURPOSES, keys, strict=True))

    def numbers(purpose: Purpose, count: int) -> Tensor:
        return uniform(key_of[purpose], index, count, steps)

    def happens(purpose: Purpose, odds: float) -> Tensor | None:
        return numbers(purpose, 1)[:, 0] < odds if odds > 0 else None

    order = factors = sigma = degrees = None
    if view.jitter is not None:
        u = numbers(Purpose.JITTER, MOST_DRAWS)  # applied?, 4 sort keys of the order, 4 strengths
        applied = u[:, 0] < view.jitter.p
        order = argsort(u[:, 1:5])
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


def argsort(values: Tensor) -> Tensor:
    """Returns the stable argsort along the second dimension."""
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        return values.argsort(dim=1, stable=True)
    return argsort_by_comparisons(values)


def argsort_by_comparisons(values: Tensor) -> Tensor:
    """Returns what `argsort` does, by operations that a compiler fuses.

    The second dimension must be short.
    """
    columns = values.unbind(1)
    ranks = []
    for k, own in enumerate(columns):
        smaller = [(v <= own if j < k else v < own).long() for j, v in enumerate(columns) if j != k]
        ranks.append(sum(smaller[1:], smaller[0]))
    places = range(len(columns))
    at = [sum(((ranks[k] == place) * k for k in places[1:]), torch.zeros_like(ranks[0])) for place in places]
    return torch.stack(at, 1)


def _within(u: Tensor, bounds: Range) -> Tensor:
    return bounds[0] + u * (bounds[1] - bounds[0])
