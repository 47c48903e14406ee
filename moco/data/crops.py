"""Reads the sizes of multi-crop from the command line.

Multi-crop takes two large crops of an image, and several small ones (Caron et al. 2020, SwAV, §3.2).
"""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple


class SmallCrops(NamedTuple):
    """Holds the number, size and scale of the small crops.

    size: in px. scale: smallest and largest share of the image's area.
    """

    number: int
    size: int
    scale: tuple[float, float]


class MultiCrop(NamedTuple):
    """Holds the two large crops' size and scale, and the small crops."""

    size: int
    scale: tuple[float, float]
    small: SmallCrops


_GROUP = re.compile(r"(\d+)x(\d+)@(\d*\.?\d+)-(\d*\.?\d+)")


def multi_crop(text: str) -> MultiCrop:
    """Reads crops such as `2x224@.14-1+6x96@.05-.14`. Raises ValueError.

    Each part is count x pixels @ smallest-largest share of the area.
    """
    groups = []
    for part in text.split("+"):
        match = _GROUP.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not COUNTxPIXELS@SMALLEST-LARGEST")
        count = int(match[1])
        size = int(match[2])
        low = float(match[3])
        high = float(match[4])
        if not (count and size and 0 < low <= high <= 1):
            raise ValueError(f"{part!r} has a count or size of 0, or shares that do not rise from above 0 to at most 1")
        groups.append(SmallCrops(count, size, (low, high)))
    if len(groups) != 2 or groups[0].number != 2:
        raise ValueError("it is two large crops and some small ones")
    return MultiCrop(groups[0].size, groups[0].scale, groups[1])


def crops_text(text: str) -> str:
    """Returns `text` if it is valid; the argparse type of --crops."""
    try:
        multi_crop(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no set of crops such as 2x224@.14-1+6x96@.05-.14: {error}"
        ) from error
    return text
