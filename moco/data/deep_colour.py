"""Reads 16-bit colour from PNG and TIFF files.

Pillow gives only the upper byte of each value. If the two bytes are declared in the opposite order, it gives the lower
byte. So each file is decoded twice.
"""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import numpy as np
from PIL import Image

_DEEP = re.compile(r"(?:RGBA|RGBX|RGB);16[BLN]|LA;16B")
_GREY_AND_ALPHA = "LA;16B"
_NATIVE = "L" if sys.byteorder == "little" else "B"
_OTHER = {"B": "L", "L": "B"}


def deep_colour_file(image: Image.Image) -> bytes | None:
    """Returns the file's bytes if it has several channels of 16 bits.

    None for other files. Call it before the image is loaded: for a loaded image it returns None. Pillow may load an
    image to find its orientation.
    """
    file = getattr(image, "fp", None)
    deep = image.format in ("PNG", "TIFF") and any(_DEEP.fullmatch(_raw_mode(tile)) for tile in _tiles(image))
    if file is None or not deep:
        return None
    at = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(at)
    return data


def read_deep_colour(data: bytes, turn: Image.Transpose | None) -> np.ndarray:
    """Returns uint16 [H, W, C] from the bytes of such a file.

    C: 2, 3 or 4. turn: makes the image upright. Raises the errors of Pillow for a damaged file.
    """
    image = Image.open(io.BytesIO(data))
    grey = _raw_mode(_tiles(image)[0]) == _GREY_AND_ALPHA
    image.tile = [_with_raw_mode(tile, "RGBA" if grey else _swapped(_raw_mode(tile))) for tile in _tiles(image)]
    found = _values(image, turn)
    if grey:  # both bytes of both channels
        return found[..., 0::2] * np.uint16(256) + found[..., 1::2]
    return _values(Image.open(io.BytesIO(data)), turn) * np.uint16(256) + found


def _values(image: Image.Image, turn: Image.Transpose | None) -> np.ndarray:
    image.load()
    return np.asarray(image if turn is None else image.transpose(turn)).astype(np.uint16)


def _tiles(image: Image.Image) -> list[Any]:
    """Returns the parts that Pillow will decode, as named tuples.

    Empty for a loaded image.
    """
    return list(getattr(image, "tile", []))


def _raw_mode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


def _with_raw_mode(tile: Any, mode: str) -> Any:
    return tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:]))


def _swapped(mode: str) -> str:
    order = mode[-1] if mode[-1] in _OTHER else _NATIVE
    return mode[:-1] + _OTHER[order]
