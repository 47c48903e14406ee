"""HEIC and HEIF pictures, the default of many phones: read where pillow-heif is installed."""

from __future__ import annotations

import functools

SUFFIXES = frozenset([".heic", ".heif", ".hif"])
ADVICE = "to read HEIC pictures, `pip install pillow-heif`, or convert them"
_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"])


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with `head` (12 bytes or more) is of this kind."""
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


@functools.cache
def can_read() -> bool:
    """Whether pillow-heif is installed; Pillow opens such files from then on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True
