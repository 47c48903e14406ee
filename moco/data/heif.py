"""Reads HEIC and HEIF pictures of phones, if pillow-heif is installed."""

from __future__ import annotations

import functools

SUFFIXES = frozenset([".heic", ".heif", ".hif"])
ADVICE = "to read HEIC pictures, `pip install pillow-heif`, or convert them"
_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"])


def is_heif(head: bytes) -> bool:
    """Returns True if a file beginning with `head` is HEIC or HEIF.

    head: 12 bytes or more.
    """
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


@functools.cache
def can_read() -> bool:
    """Returns True if pillow-heif is installed; Pillow then opens such files."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True
