"""Boxes against torchvision's own drawing, and the properties that let two sources cut the same pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torchvision.transforms import RandomResizedCrop

from moco.data.boxes import DRAWS, REDUCING_GAP, Box, centre_box, random_box, reduction, rescale, snap
from moco.randomness import Purpose, stream_key, uniform

SIDES = st.integers(1, 3000)
SIZES = st.tuples(SIDES, SIDES)
FULL, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def draws(index: int) -> list[float]:
    return uniform(stream_key(0, 0, Purpose.CROP), np.array([index]), DRAWS)[0].tolist()


def torchvision_box(numbers: list[float], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Box:
    """What RandomResizedCrop gives if its generator yields these numbers, four to an attempt."""
    calls = {"uniform": 0, "randint": 0}

    def uniform_(self: torch.Tensor, low: float, high: float) -> torch.Tensor:
        attempt, which = divmod(calls["uniform"], 2)
        calls["uniform"] += 1
        return torch.tensor([low + (high - low) * numbers[4 * attempt + which]], dtype=torch.float64)

    def randint(low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        attempt, which = calls["uniform"] // 2 - 1, calls["randint"]
        calls["randint"] += 1
        return torch.tensor([low + int(numbers[4 * attempt + 2 + which] * (high - low))])

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", randint)
        patch.setattr(torch.Tensor, "uniform_", uniform_)
        top, left, h, w = RandomResizedCrop.get_params(torch.zeros(3, *size), list(FULL), list(RATIO))
    return top, left, h, w


def test_boxes_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(100 + i, 400 - i) for i in range(300)]
    ours = np.array([random_box(draws(i), size, FULL, RATIO) for i, size in enumerate(sizes)])
    theirs = np.array([torchvision_box(draws(i), size, monkeypatch) for i, size in enumerate(sizes)])
    assert np.abs(ours - theirs).max() <= 1  # torchvision takes logarithms in float32, which can turn a rounding
    assert (ours == theirs).all(1).mean() > 0.98


@pytest.mark.parametrize("size", [(10, 400), (400, 10), (1, 1), (1, 3000), (7, 2)])
def test_extreme_shapes_fall_back_like_torchvision(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    top, left, h, w = random_box([0.999999] * DRAWS, size, FULL, RATIO)
    assert 0 < h <= size[0]
    assert 0 < w <= size[1]
    if min(size) >= 7 and max(size) == 400:
        assert (top, left, h, w) == torchvision_box([0.999999] * DRAWS, size, monkeypatch)


@given(SIZES, st.integers(0, 10**6))
def test_random_boxes_lie_inside(size: tuple[int, int], index: int) -> None:
    top, left, h, w = random_box(draws(index), size, FULL, RATIO)
    assert top >= 0
    assert left >= 0
    assert 0 < h <= size[0] - top
    assert 0 < w <= size[1] - left


def test_area_and_aspect_are_spread_as_asked() -> None:
    """On a square image attempts are rarely rejected: area uniform in `scale`, log aspect uniform, position uniform."""
    boxes = np.array([random_box(draws(i), (1000, 1000), (0.2, 0.5), RATIO) for i in range(4000)], dtype=float)
    top, _, h, w = boxes.T
    area, aspect, place = h * w / 1e6, np.log(w / h) / math.log(4 / 3), top / (1000 - h)
    for values, low, high in ((area, 0.2, 0.5), (aspect, -1, 1), (place, 0, 1)):
        position = np.sort((values - low) / (high - low))
        assert np.abs(position - (np.arange(4000) + 0.5) / 4000).max() < 0.03  # Kolmogorov-Smirnov, p about 0.001


@given(SIZES, st.floats(0.1, 1.0))
def test_centre_box(size: tuple[int, int], fraction: float) -> None:
    top, left, h, w = centre_box(size, fraction)
    assert h == w == max(1, round(min(size) * fraction))
    assert abs(top - (size[0] - h - top)) <= 1
    assert abs(left - (size[1] - w - left)) <= 1


@given(st.lists(st.tuples(st.just(0), st.just(0), SIDES, SIDES), min_size=1, max_size=3), st.integers(1, 300))
def test_reduction_leaves_enough_pixels(boxes: list[Box], output: int) -> None:
    k = reduction(boxes, output)
    smallest = min(min(h, w) for _, _, h, w in boxes)
    assert k == 1 or smallest / k >= REDUCING_GAP * output
    assert k == 8 or smallest / (2 * k) < REDUCING_GAP * output


@given(SIZES, st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]))
def test_snapped_boxes_are_whole_pixels_of_the_smaller_image(size: tuple[int, int], index: int, k: int) -> None:
    box = random_box(draws(index), size, FULL, RATIO)
    top, left, h, w = snap(box, k)
    assert all(side % k == 0 for side in (top, left, h, w))
    edges = zip((top, left, top + h, left + w), (box[0], box[1], box[0] + box[2], box[1] + box[3]), strict=True)
    assert all(0 <= before - after < k for after, before in edges)


@given(st.tuples(st.integers(20, 2000), st.integers(20, 2000)), st.integers(16, 500), st.integers(0, 10**6))
def test_boxes_of_a_smaller_copy_are_within_a_pixel(size: tuple[int, int], longest: int, index: int) -> None:
    shrink = min(1.0, longest / max(size))
    stored = (max(1, int(size[0] * shrink)), max(1, int(size[1] * shrink)))
    box = random_box(draws(index), size, FULL, RATIO)
    top, left, h, w = rescale(box, size, stored)
    assert 0 <= top < top + h <= stored[0]
    assert 0 <= left < left + w <= stored[1]
    down, across = stored[0] / size[0], stored[1] / size[1]
    exact = (box[0] * down, box[1] * across, (box[0] + box[2]) * down, (box[1] + box[3]) * across)
    assert all(abs(a - b) <= 1 for a, b in zip((top, left, top + h, left + w), exact, strict=True))


@given(SIZES, st.integers(0, 100))
def test_boxes_of_the_original_stay_as_they_are(size: tuple[int, int], index: int) -> None:
    box = random_box(draws(index), size, FULL, RATIO)
    assert rescale(box, size, size) == box
    assert snap(box, 1) == box
