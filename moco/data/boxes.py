"""Draws crop boxes from random numbers and an image size.

A box is (top, left, height, width), in pixels of the upright original. Every source draws its boxes here, from the
original's size, so that a folder and a .beton written from it give the same crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

Box = tuple[int, int, int, int]
Size = tuple[int, int]  # (height, width)

ATTEMPTS = 10
DRAWS = 4 * ATTEMPTS  # random numbers for one random box

# A JPEG is decoded at 1/k of its size if the smallest crop then still has this many times the output's size. 2 is
# Pillow's "fair" reducing_gap; `tests/data/test_loader.py` limits the difference to decoding in full.
REDUCING_GAP = 2.0


def random_box(draws: Sequence[float], size: Size, scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """Draws a box as torchvision's RandomResizedCrop does, from given numbers.

    draws: `DRAWS` numbers in [0, 1). The share of the area is uniform in `scale`, the aspect ratio is log-uniform in
    `ratio`, and the position is uniform. After ten failed attempts it returns the largest central box whose aspect
    ratio is allowed.
    """
    height, width = size
    low = math.log(ratio[0])
    high = math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        a, r, y, x = draws[4 * attempt : 4 * attempt + 4]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * a)
        aspect = math.exp(low + (high - low) * r)
        h = round(math.sqrt(area / aspect))
        w = round(math.sqrt(area * aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def centre_box(size: Size, fraction: float) -> Box:
    """Returns the central square whose side is `fraction` of the shorter side.

    .875 is the usual "resize to 256, cut 224".
    """
    side = max(1, round(min(size) * fraction))
    return (size[0] - side) // 2, (size[1] - side) // 2, side, side


def reduction(boxes: Sequence[Box], output: int) -> int:
    """Returns the largest k of 1, 2, 4, 8 without visible loss.

    If an image is decoded at 1/k of its size, its crops of `output` pixels look the same.
    """
    smallest = min(min(h, w) for _, _, h, w in boxes)
    for k in (8, 4, 2):
        if smallest >= REDUCING_GAP * k * output:
            return k
    return 1


def snap(box: Box, k: int) -> Box:
    """Moves a box's edges to multiples of k.

    They move by less than k pixels. So the box has whole pixels in an image of 1/k the size.
    """
    top, left, h, w = box
    bottom = (top + h) // k * k
    right = (left + w) // k * k
    top = top // k * k
    left = left // k * k
    return top, left, bottom - top, right - left


def rescale(box: Box, size: Size, stored: Size) -> Box:
    """Converts a box from an image's `size` to its `stored` size.

    Each edge moves by at most half a pixel.
    """
    if size == stored:
        return box
    top, left, h, w = box
    down = Fraction(stored[0], size[0])
    across = Fraction(stored[1], size[1])
    y0 = round(top * down)
    y1 = round((top + h) * down)
    x0 = round(left * across)
    x1 = round((left + w) * across)
    y0 = min(y0, stored[0] - 1)
    x0 = min(x0, stored[1] - 1)
    return y0, x0, max(1, y1 - y0), max(1, x1 - x0)
