"""Decodes plain JPEG files with OpenCV, and recognises incomplete downloads.

OpenCV and Pillow both use libjpeg-turbo, and their pixels are equal (tests/data/test_jpeg.py). OpenCV works without
the interpreter lock. Pillow parses the header in Python and copies the pixels, and holds the lock for both. Other
threads then wait, also the thread that starts the GPU's kernels. OpenCV is installed with FFCV. Without it Pillow
decodes all files.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

START = b"\xff\xd8"
_END = b"\xff\xd9"
_SCAN = 0xDA
_ZEROS = bytes(64)


def ends_in_zeros(data: bytes) -> bool:
    """Returns True if a JPEG ends in zeros, without its end marker.

    Zeros after the marker do no harm: cameras and cards pad files with them.
    """
    if not (data.startswith(START) and data.endswith(_ZEROS)):
        return False
    return data.find(_END, _first_scan(data)) < 0  # pixels cannot contain the marker; a thumbnail before them can


def _first_scan(data: bytes) -> int:
    """Returns the position of the first scan, or of earlier damage.

    Damage is a segment that is not whole.
    """
    at = len(START)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


class Header(NamedTuple):
    """Holds the size in pixels, from a JPEG's header."""

    height: int
    width: int


def plain_header(data: bytes) -> Header | None:
    """Returns the header of a JPEG that OpenCV and Pillow read equally.

    None for other files. It must be an upright image of 8 bits and 1 or 3 channels, with its end marker. Pillow reads
    the others: turned images, CMYK, several images in a file, and files that are cut off or too large. OpenCV would
    read them differently, or without Pillow's error.
    """
    if not (data.startswith(START) and data.endswith(_END)):
        return None
    frame = None
    at = len(START)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            return frame
        if marker in _FRAMES:
            precision, channels = data[at + 4], data[at + 9]
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            if precision != 8 or channels not in (1, 3) or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or 0):
                return None
            frame = Header(height, width)
        elif marker in _APPLICATIONS:
            if _says_more(data[at + 4 : end]):
                return None
        elif marker not in _TABLES:
            return None
        at = end
    return None


_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; the others Pillow may refuse
_TABLES = (0xC4, 0xDB, 0xDD, 0xFE)  # Huffman, quantisation, restart interval, comment
_APPLICATIONS = range(0xE0, 0xF0)
_ORIENTATION_TAGS = (b"\x01\x12\x00\x03", b"\x12\x01\x03\x00", b"Orientation")  # EXIF's two byte orders, XMP


def _says_more(segment: bytes) -> bool:
    """Returns True if Pillow must read the file because of this segment.

    The segment may turn the image, or announce further images.
    """
    return segment.startswith(b"MPF") or any(tag in segment for tag in _ORIENTATION_TAGS)


@cache
def opencv() -> Any:
    """Imports cv2; None without it, or if it cannot give RGB."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2 if hasattr(cv2, "IMREAD_COLOR_RGB") else None


def decode_plain(data: bytes, header: Header, reduction: int) -> np.ndarray | None:
    """Decodes a file with a plain header to uint8 [ceil(H/k), ceil(W/k), 3].

    None if OpenCV has an error. reduction: k, which is 1, 2, 4 or 8.
    """
    cv2 = opencv()
    # IMREAD_REDUCED_COLOR_2 and the like would ask for BGR as well
    reduced = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
    flags = reduced.get(reduction, 0) | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    shape = (-(-header.height // reduction), -(-header.width // reduction), 3)
    return pixels if pixels is not None and pixels.shape == shape else None
