"""Reads images in NumPy's .npy files: header and bytes, never a pickle."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.lib import format as npy

from moco.data.boxes import Size
from moco.data.channels import BadImage, PixelFormat, to_format
from moco.data.source import Pixels

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def is_array(data: bytes) -> bool:
    """Returns True if a file with this beginning is one of NumPy's."""
    return data.startswith(_MAGIC)


class ValuesPicture:
    """Holds a file's values in memory, [H, W, C] of any kind."""

    def __init__(self, values: np.ndarray, wanted: PixelFormat) -> None:
        self.values = values
        self.wanted = wanted
        self.size: Size = (values.shape[0], values.shape[1])

    @property
    def stored(self) -> Size:
        return self.size

    def decode(self, reduction: int = 1, rows: tuple[int, int] | None = None) -> Pixels:
        return Pixels(np.ascontiguousarray(to_format(self.values, self.wanted)))


def read_array(data: bytes, wanted: PixelFormat) -> np.ndarray:
    """Reads an image [H, W, C] from a .npy file. Raises BadImage.

    The file holds [H, W], [H, W, C] or [C, H, W]. Of three axes, the last has the channels if its length is the wanted
    number, otherwise the first.
    """
    return _image(_read(data), wanted)


def channels_of_array(data: bytes) -> int:
    """Returns the number of channels of a .npy file. Raises BadImage.

    1 without three axes. Otherwise 3 or 1 if the first or the last axis has that length, else the shorter of the two.
    """
    shape = _read(data).shape
    if len(shape) != 3:
        return 1
    ends = (shape[0], shape[2])
    return next((count for count in (3, 1) if count in ends), min(ends))


def _read(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    try:
        read_header = _HEADERS[npy.read_magic(file)]
        shape, columns_first, dtype = read_header(file)
    except Exception as problem:  # a damaged header raises many kinds
        raise BadImage(f"its header is not that of a .npy array ({type(problem).__name__})") from None
    if dtype.hasobject or dtype.fields or dtype.subdtype:
        raise BadImage("its values are Python objects or records, which could run code: save an array of numbers")
    there = len(data) - file.tell()
    needed = math.prod(shape) * dtype.itemsize
    if there < needed:
        raise BadImage(f"it is cut off: {there} bytes of values where its header says {needed}")
    values = np.frombuffer(data, dtype, math.prod(shape), file.tell()) if needed else np.empty(0, dtype)
    return values.reshape(shape, order="F" if columns_first else "C")


def _image(values: np.ndarray, wanted: PixelFormat) -> np.ndarray:
    """Returns an array as [H, W, C]."""
    if not values.size:
        raise BadImage(f"its shape {list(values.shape)} has no pixels")
    if values.ndim == 2:
        return values[..., None]
    # a single channel counts as grey if three are wanted
    for count in (wanted.channels, *([1] if wanted.channels == 3 else [])):
        if values.ndim == 3 and count in (values.shape[2], values.shape[0]):
            return values if values.shape[2] == count else np.moveaxis(values, 0, 2)
    raise BadImage(
        f"its shape is {list(values.shape)}, and --channels is {wanted.channels}: an array must be [H, W],"
        f" [H, W, {wanted.channels}] or [{wanted.channels}, H, W]"
    )
