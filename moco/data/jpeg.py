"""JPEG files that a download has only begun: the rest is zeros, which libjpeg decodes to grey without an error."""

from __future__ import annotations

START = b"\xff\xd8"
_END = b"\xff\xd9"
_SCAN = 0xDA
_ZEROS = bytes(64)


def ends_in_zeros(data: bytes) -> bool:
    """Whether a JPEG's last bytes are zeros and its end marker is missing.

    Zeros after the marker do no harm: cameras and cards pad files with them.
    """
    if not (data.startswith(START) and data.endswith(_ZEROS)):
        return False
    return data.find(_END, _first_scan(data)) < 0  # pixels cannot contain the marker; a thumbnail before them does


def _first_scan(data: bytes) -> int:
    """The position of the first scan; that of the damage if the segments before it are not whole."""
    at = len(START)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SCAN:
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at
