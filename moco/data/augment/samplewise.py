"""Augments on a CPU, one sample at a time, compiled by numba.

The operations of `moco.data.augment.batched` pass some fifty times over each image, and their threads wait for each
other. On a CPU, memory and Python limit their speed. Here a sample takes two passes for all operations, three with a
blur. Rows stay in the nearest cache, only operations drawn for the sample run, and threads hold no interpreter lock.
Each sample is computed alone by the same instructions, so its bits do not depend on its batch or on the threads. The
formulas are those of `batched`. numba keeps compiled code on disk until this file changes, so all of it is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

# As in moco.data.augment.parameters and moco.data.augment.batched; a test checks that they are equal.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.2989, 0.587, 0.114)
BLUR_REACH = 3.5

Number = Any  # in signatures: a float32, or what becomes one
_RED, _GREEN, _BLUE = (np.float32(weight) for weight in LUMA)
_ZERO, _WHITE, _ONE, _TWO, _THREE = (np.float32(value) for value in (0, 255, 1, 2, 3))


def _jit(function: Callable) -> Any:
    # numba may fuse, reorder and vectorise sums, but must not assume that no number is infinite or NaN.
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    }
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither this folder nor the home folder can be written to: compile in every run
        return njit(**options)(function)


@_jit
def _clamped(v: Number) -> Number:
    return min(max(v, _ZERO), _WHITE)


@_jit
def _luma(row: np.ndarray, i: int) -> Number:
    return _RED * row[0, i] + _GREEN * row[1, i] + _BLUE * row[2, i]


@_jit
def _read(row: np.ndarray, crop: np.ndarray, y: int, flip: bool) -> None:
    """Reads row y of crop into row [3, S]."""
    size = row.shape[1]  # crop: flat bytes [S · S · 3]
    start, step = (3 * ((y + 1) * size - 1), -3) if flip else (3 * y * size, 3)
    for i in range(size):
        for c in range(3):
            row[c, i] = crop[start + step * i + c]


@_jit
def _read_rotated(row: np.ndarray, crop: np.ndarray, y: int, flip: bool, cos: float, sin: float) -> None:
    """Reads as `_read` does, bilinear, from the crop rotated about its centre."""
    size = row.shape[1]
    centre = (size - 1) / 2
    dy = y - centre
    for i in range(size):
        dx = (size - 1 - i if flip else i) - centre  # the flip comes after the rotation
        sx = cos * dx - sin * dy + centre
        sy = sin * dx + cos * dy + centre
        left, top = math.floor(sx), math.floor(sy)
        right, bottom = np.float32(sx - left), np.float32(sy - top)  # shares of the neighbours on that side
        x0, x1 = min(max(left, 0), size - 1), min(max(left + 1, 0), size - 1)
        y0, y1 = min(max(top, 0), size - 1), min(max(top + 1, 0), size - 1)
        a = (_ONE - right) * (x0 == left)  # a neighbour outside is black
        b = right * (x1 == left + 1)
        c = (_ONE - bottom) * (y0 == top)
        d = bottom * (y1 == top + 1)
        north, south = y0 * size, y1 * size
        for k in range(3):
            above = a * crop[3 * (north + x0) + k] + b * crop[3 * (north + x1) + k]
            below = a * crop[3 * (south + x0) + k] + b * crop[3 * (south + x1) + k]
            row[k, i] = c * above + d * below


@_jit
def _sum_luma(row: np.ndarray) -> Number:
    total = _ZERO
    for i in range(row.shape[1]):
        total += _luma(row, i)
    return total


@_jit
def _grey(row: np.ndarray) -> None:
    for i in range(row.shape[1]):
        row[0, i] = row[1, i] = row[2, i] = _luma(row, i)


@_jit
def _scale_and_add(row: np.ndarray, factor: Number, base: Number) -> None:
    for c in range(3):
        for i in range(row.shape[1]):
            row[c, i] = _clamped(factor * row[c, i] + base)


@_jit
def _saturate(row: np.ndarray, factor: Number) -> None:
    rest = _ONE - factor
    for i in range(row.shape[1]):
        base = rest * _luma(row, i)
        for c in range(3):
            row[c, i] = _clamped(factor * row[c, i] + base)


@_jit
def _wrapped(sixths: Number) -> Number:
    return np.float32(sixths - 6 * round(sixths / 6))


@_jit
def _shift_hue(row: np.ndarray, turns: Number) -> None:
    to_red, to_green, to_blue = _wrapped(6 * turns), _wrapped(6 * turns - 2), _wrapped(6 * turns + 2)
    for i in range(row.shape[1]):
        r, g, b = row[0, i], row[1, i], row[2, i]
        high = max(max(r, g), b)
        low = min(min(r, g), b)
        chroma = high - low
        hue = (g - r) + b + high - _TWO * low
        hue = hue if g >= b else -hue
        row[0, i] = min(max(abs(abs(hue + chroma * to_red) - _THREE * chroma) - chroma + low, low), high)
        row[1, i] = min(max(abs(abs(hue + chroma * to_green) - _THREE * chroma) - chroma + low, low), high)
        row[2, i] = min(max(abs(abs(hue + chroma * to_blue) - _THREE * chroma) - chroma + low, low), high)


@_jit
def _jitter(row: np.ndarray, order: np.ndarray, first: int, last: int, factors: np.ndarray) -> None:
    """Applies the operations order[first:last] to a row; contrast is skipped."""
    for place in range(first, last):
        which = order[place]
        if which == BRIGHTNESS and factors[BRIGHTNESS] != _ONE:
            _scale_and_add(row, factors[BRIGHTNESS], _ZERO)
        elif which == SATURATION and factors[SATURATION] != _ONE:
            _saturate(row, factors[SATURATION])
        elif which == HUE and factors[HUE] != _ZERO:
            _shift_hue(row, factors[HUE])


@_jit
def _mirror(at: int, size: int) -> int:
    at = abs(at)
    return at if at < size else 2 * (size - 1) - at


@_jit
def _start(to: np.ndarray, centre: np.ndarray, weight: Number) -> None:
    for i in range(len(to)):
        to[i] = weight * centre[i]


@_jit
def _add_pair(to: np.ndarray, left: np.ndarray, right: np.ndarray, weight: Number) -> None:
    for i in range(len(to)):
        to[i] += weight * (left[i] + right[i])


@_jit
def _blur_row(
    image: np.ndarray, y: int, taps: np.ndarray, down: np.ndarray, padded: np.ndarray, row: np.ndarray
) -> None:
    """Blurs row y of the image [S, 3 * S] into `row`.

    It blurs down the columns first, then along the row. taps [radius + 1]: from the centre outwards. Scratch: down
    [3 * S], padded; like row flat [3, S + 2 * radius]. The second pass runs over the three mirrored channels at once.
    Its results between the channels have no meaning.
    """
    size, radius = image.shape[0], len(taps) - 1
    wide = size + 2 * radius
    _start(down, image[y], taps[0])
    for k in range(1, radius + 1):
        _add_pair(down, image[_mirror(y - k, size)], image[_mirror(y + k, size)], taps[k])
    for c in range(3):
        line = padded[c * wide : (c + 1) * wide]
        line[radius : radius + size] = down[c * size : (c + 1) * size]
        for k in range(1, radius + 1):
            line[radius - k] = line[radius + k]
            line[radius + size - 1 + k] = line[radius + size - 1 - k]
    count = 3 * wide - 2 * radius
    along = row[:count]
    _start(along, padded[radius : radius + count], taps[0])
    for k in range(1, radius + 1):
        _add_pair(along, padded[radius - k : radius - k + count], padded[radius + k : radius + k + count], taps[k])


@_jit
def _taps(sigma: float, size: int) -> np.ndarray:
    radius = min(math.ceil(BLUR_REACH * sigma), size - 1)
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    return (weights / (2 * weights.sum() - weights[0])).astype(np.float32)


@_jit
def _write(out: np.ndarray, line: np.ndarray, wide: int, solarize: bool, scale: np.ndarray, shift: np.ndarray) -> None:
    """Writes `line`, three channels `wide` apart, into out [S, 3]."""
    if solarize:
        for i in range(len(line)):
            line[i] = min(line[i], _WHITE - line[i])
    size = out.shape[0]
    red, green, blue = line[:size], line[wide : wide + size], line[2 * wide : 2 * wide + size]  # `wide` apart
    a, b, c, d, e, f = scale[0], scale[1], scale[2], shift[0], shift[1], shift[2]
    for i in range(size):
        out[i, 0] = a * red[i] + d
        out[i, 1] = b * green[i] + e
        out[i, 2] = c * blue[i] + f


# fmt: off
@_jit
def augment(
    first: int, last: int, crops: np.ndarray, stride: int,
    order: np.ndarray, factors: np.ndarray, grayscale: np.ndarray, grayscale_first: bool,
    sigma: np.ndarray, solarize: np.ndarray, degrees: np.ndarray, flip: np.ndarray,
    scale: np.ndarray, shift: np.ndarray, out: np.ndarray,
) -> None:
    # fmt: on
    """Augments samples first to last - 1 of a batch into `out`.

    out: float32 [n, S, S, 3], bytes * scale + shift, each [3]. crops: uint8, flat; sample i [S, S, 3] begins at i *
    stride. The parameters are those of `moco.data.augment.parameters`, and none is None.
    """
    size = out.shape[1]
    image = np.empty((size, 3, size), np.float32)
    flat = image.reshape(size, 3 * size)
    down = np.empty(3 * size, np.float32)
    padded, blurred = np.zeros(9 * size, np.float32), np.zeros(9 * size, np.float32)  # a blur's radius is below S
    for n in range(first, last):
        crop = crops[n * stride : n * stride + size * size * 3]
        contrast = factors[n, CONTRAST]
        place = 0
        while place < 4 and order[n, place] != CONTRAST:  # contrast needs the whole image
            place += 1
        cos, sin = math.cos(math.radians(degrees[n])), math.sin(math.radians(degrees[n]))
        mean = 0.0
        for y in range(size):
            row = image[y]
            if degrees[n] != 0:
                _read_rotated(row, crop, y, flip[n], cos, sin)
            else:
                _read(row, crop, y, flip[n])
            if grayscale[n] and grayscale_first:
                _grey(row)
            _jitter(row, order[n], 0, place, factors[n])
            if contrast != _ONE:
                mean += _sum_luma(row)
        base = np.float32((1 - contrast) * mean / (size * size))
        for y in range(size):
            row = image[y]
            if contrast != _ONE:
                _scale_and_add(row, contrast, base)
            _jitter(row, order[n], place + 1, 4, factors[n])
            if grayscale[n] and not grayscale_first:
                _grey(row)
            if sigma[n] == 0:
                _write(out[n, y], flat[y], size, solarize[n], scale, shift)
        if sigma[n] > 0:
            taps = _taps(sigma[n], size)
            for y in range(size):
                _blur_row(flat, y, taps, down, padded, blurred)
                _write(out[n, y], blurred, size + 2 * len(taps) - 2, solarize[n], scale, shift)
