"""Removes text and profiles from PNG files, because Pillow may refuse them."""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NOT_PIXELS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_MAY_TURN = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # text that can hold an orientation
_MOST_TEXT = 1 << 20  # bytes of decompressed text that Pillow takes


def without_text(data: bytes) -> bytes:
    """Returns `data` without its chunks of text and profiles.

    They do not change a pixel. Pillow calls a file unreadable if such a chunk is damaged, or expands to more than 1 MiB
    (the prompts of image generators, the profiles of scanners). Text that can hold an orientation stays, unless it is
    itself damaged or too large.
    """
    kept = [data[: len(SIGNATURE)]]
    at = len(SIGNATURE)
    dropped = False
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, at)
        end = at + length + 12
        if kind == b"IEND":
            end = len(data)
        if kind in _NOT_PIXELS and end <= len(data) and not _may_turn(kind, data[at + 4 : end]):
            dropped = True
        else:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]]) if dropped else data


def _may_turn(kind: bytes, chunk: bytes) -> bool:
    """Returns True if a chunk is whole and can hold an orientation.

    chunk: from its kind to its checksum.
    """
    content = chunk[:-4]
    (checksum,) = struct.unpack(">L", chunk[-4:])
    keyword, _, text = content[4:].partition(b"\0")
    if keyword not in _MAY_TURN or zlib.crc32(content) != checksum:
        return False
    if kind == b"zTXt":
        return _expands_little(text[1:])
    if kind == b"iTXt" and text[:1] != b"\0":
        return _expands_little(text[2:].partition(b"\0")[2].partition(b"\0")[2])
    return True


def _expands_little(packed: bytes) -> bool:
    expander = zlib.decompressobj()
    try:
        expander.decompress(packed, _MOST_TEXT)
    except zlib.error:
        return False
    return not expander.unconsumed_tail
