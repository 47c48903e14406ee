"""Converts the values of images to bytes, for any channels and depth.

All later steps, from the crops to the normalisation, work on uint8 [H, W, C].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moco.errors import InputError

MOST_CHANNELS = 1024
MEASUREMENT_SUFFIXES = (".tif", ".tiff", ".npy")  # formats of microscopes and satellites
_LARGEST = 1e30  # limit of typed numbers: differences of such numbers are still finite
_TABLE_BITS = 16  # integers of at most this size are looked up in a table


class BadImage(InputError):
    """Says that a sample cannot be read.

    The run ends with an error that names the sample, or with --skip-bad-images skips and counts it.
    """


@dataclass(frozen=True)
class PixelFormat:
    """Holds the format of a run's images: uint8 [H, W, channels].

    ranges: (low, high), the values that become 0 and 255; one pair for all channels, or one for each. Without ranges
    each channel of each file is scaled from its own smallest and largest value. Files of 8 bits are not scaled.
    """

    channels: int = 3
    ranges: tuple[tuple[float, float], ...] = ()


RGB = PixelFormat()


def pixel_format(channels: int | None, value_range: str | None) -> PixelFormat:
    """Returns the format for --channels and --value-range.

    channels: None if not known yet; the format then has 3. Raises InputError if a value has no meaning.
    """
    known = channels is not None
    channels = 3 if channels is None else channels
    if not 1 <= channels <= MOST_CHANNELS:
        raise InputError(f"--channels must lie between 1 and {MOST_CHANNELS}, not {channels}")
    values = numbers("--value-range", value_range)
    pairs = tuple(zip(values[::2], values[1::2], strict=False))
    if values and len(values) not in (2, 2 * channels) and (known or len(values) % 2):
        pair = "LOW,HIGH" if channels == 1 else f"LOW,HIGH, or {channels} such pairs in a row"
        raise InputError(f"--value-range takes {pair}, not {len(values)} numbers")
    if any(low >= high for low, high in pairs):
        raise InputError(f"--value-range {value_range}: LOW must be below HIGH")
    return PixelFormat(channels, pairs)


def statistics(channels: int | None, mean: str | None, std: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the numbers of --mean and --std, empty without the options.

    channels: None if not known yet. Raises InputError unless there is one number for each channel.
    """
    found = numbers("--mean", mean), numbers("--std", std)
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: pass both, or neither")
    for name, values in zip(("--mean", "--std"), found, strict=True):
        if values and channels is not None and len(values) != channels:
            raise InputError(f"{name} has {len(values)} numbers for {channels} channels: give one for each")
    if any(value <= 0 for value in found[1]):
        raise InputError(f"--std {std}: a standard deviation is greater than 0; leave constant channels out")
    return found


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """Reads the numbers in a list such as "0.1,0.2".

    Empty for None. Raises InputError with the name of the option.
    """
    if text is None:
        return ()
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"{option} takes numbers with commas between them, as in 0.1,0.2, not {text!r}") from None
    if not all(math.isfinite(value) and abs(value) < _LARGEST for value in values):
        raise InputError(f"{option} takes finite numbers, not {text}")
    return values


def to_format(values: np.ndarray, wanted: PixelFormat) -> np.ndarray:
    """Converts values [H, W, C] to uint8 [H, W, C]. Raises BadImage.

    Grey is repeated if three channels are wanted.
    """
    there = values.shape[2]
    grey = there == 1 and wanted.channels == 3
    if there != wanted.channels and not grey:
        raise other_count(there, wanted)
    if grey and len(wanted.ranges) < 2:
        return np.repeat(to_bytes(values, wanted.ranges), 3, axis=2)
    return to_bytes(np.repeat(values, 3, axis=2) if grey else values, wanted.ranges)


def other_count(there: int, wanted: PixelFormat) -> BadImage:
    """Returns the error for a file with another number of channels."""
    return BadImage(f"it has {there} channel{'s' * (there != 1)}, and --channels is {wanted.channels}")


def to_bytes(values: np.ndarray, ranges: Sequence[tuple[float, float]] = ()) -> np.ndarray:
    """Converts values [H, W, C] to uint8.

    Each channel's (low, high) becomes 0 and 255. Values between are scaled and rounded, others clipped. ranges: see
    `PixelFormat`. uint8 stays as it is, False and True become 0 and 255. Raises BadImage for numbers that are not
    finite or not real, and for floating-point numbers without a range.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise BadImage(f"its values are {values.dtype}, which are no pixels: save integers or floating-point numbers")
    if kind == "f":
        if bad := values.size - int(np.isfinite(values).sum()):
            raise BadImage(f"{bad} of its values are not finite (nan or inf): replace them")
        if not ranges:
            raise BadImage(
                "floating-point pixels have no range to map to 8 bits: pass --value-range LOW,HIGH, or convert the file"
            )
    out = np.empty(values.shape, np.uint8)
    for channel in range(values.shape[2]):
        of_channel = values[..., channel]
        if ranges:
            low, high = ranges[channel if len(ranges) > 1 else 0]
        else:
            low = float(of_channel.min())
            high = float(of_channel.max())
        out[..., channel] = _scaled(of_channel, low, high)
    return out


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns uint8 [H, W], all 0 if low = high."""
    if values.dtype.kind in "iu" and values.dtype.itemsize * 8 <= _TABLE_BITS:
        least = int(values.min())
        most = int(values.max())
        table = _levels(np.arange(least, most + 1, dtype=np.float64), low, high)
        return table[values.astype(np.int64) - least]
    return _levels(values.astype(np.float64), low, high)


def _levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if low == high:
        return np.zeros(values.shape, np.uint8)
    return ((values.clip(low, high) - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
