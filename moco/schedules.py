"""Learning rate, key momentum and curves as functions of the epoch.

Some are functions of the step within the epoch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import pairwise


def learning_rate(
    epoch: int,
    lr: float,
    epochs: int,
    schedule: Sequence[int] = (),
    cos: bool = False,
    warmup_epochs: int = 0,
    drop: float = 0.1,
) -> float:
    """Returns MoCo's learning rate of an epoch, counted from 0.

    It is lr × `drop` for each milestone of `schedule` that is reached.
    With `cos` it is lr · ½(1 + cos(π·epoch/epochs)) instead.
    warmup_epochs (not in MoCo): epoch e of them gets (e+1)/(warmup_epochs+1) of that value.
    """
    if cos:
        rate = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    else:
        rate = lr * drop ** sum(epoch >= milestone for milestone in schedule)
    if epoch < warmup_epochs:
        rate *= (epoch + 1) / (warmup_epochs + 1)
    return rate


def learning_rate_by_step(
    position: float,
    lr: float,
    epochs: int,
    schedule: Sequence[int] = (),
    cos: bool = False,
    warmup_epochs: int = 0,
) -> float:
    """Returns moco-v3's learning rate of a step.

    It rises linearly from 0 to lr over the warm-up, then falls to 0 over the other epochs, as half a cosine.
    Without `cos` it drops tenfold at each milestone of `schedule` instead of the cosine.
    position: epochs done before the step, with their fraction.
    """
    if position < warmup_epochs:
        return lr * position / warmup_epochs
    if not cos:
        return learning_rate(int(position), lr, epochs, schedule)
    return lr * _half_cosine(1.0, 0.0, (position - warmup_epochs) / (epochs - warmup_epochs))


def key_momentum(setting: float | str, position: float, epochs: int, cos: bool = False) -> float:
    """Returns the key encoder's momentum for a step.

    position: epochs done before the step, with their fraction.
    Without `cos` it is the setting's value in that epoch.
    With `cos` a number m rises to 1 as 1 - (1 - m)·½(1 + cos(π·position/epochs)) (BYOL, moco-v3).
    A curve with `cos` follows half a cosine between its points.
    """
    if not cos:
        return value_at(setting, int(position))
    points = curve_points(setting) if isinstance(setting, str) else [(0, setting), (epochs, 1.0)]
    for (start, low), (end, high) in pairwise(points):
        if start <= position < end:
            return _half_cosine(low, high, (position - start) / (end - start))
    return points[0][1] if position < points[0][0] else points[-1][1]


def _half_cosine(start: float, end: float, share: float) -> float:
    """Returns half a cosine from `start` to `end`.

    share: 0 at `start`, 1 at `end`. The slope is 0 at both.
    """
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * share))


def number_or_curve(text: str) -> float | str:
    """Returns the number in a text, or the text of a curve.

    A curve is `epoch:value,epoch:value,...`. ArgumentTypeError for any other text.
    """
    try:
        return float(text)
    except ValueError:
        pass
    try:
        points = curve_points(text)
    except ValueError:
        points = []
    epochs = [epoch for epoch, _ in points]
    if len(points) < 2 or epochs[0] < 0 or any(later <= earlier for earlier, later in pairwise(epochs)):
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither a number nor a curve of rising epochs such as 0:0.5,100:0.07"
        )
    return text


def values_of(setting: float | str) -> list[float]:
    """Returns a list of the number, or of a curve's values."""
    return [value for _, value in curve_points(setting)] if isinstance(setting, str) else [setting]


def curve_points(curve: str) -> list[tuple[int, float]]:
    """Returns the (epoch, value) points of `epoch:value,epoch:value,...`."""
    return [(int(epoch), float(value)) for epoch, value in (point.split(":") for point in curve.split(","))]


def value_at(setting: float | str, epoch: int) -> float:
    """Returns a setting's value in an epoch, counted from 0.

    A curve is linear between its points and constant before the first and after the last.
    """
    if not isinstance(setting, str):
        return setting
    points = curve_points(setting)
    for (start, low), (end, high) in pairwise(points):
        if start <= epoch < end:
            return low + (high - low) * (epoch - start) / (end - start)
    return points[0][1] if epoch < points[0][0] else points[-1][1]
