"""Stores a file's SHA-256 inside the file, where other readers skip it.

torch.save writes a zip archive, and torch.load does not check its CRC32 fields: a flipped bit in a weight is loaded
without an error. After a crash, a checksum in a second file might not match the first. So the checksum is the archive's
zip comment, which every reader skips:

    file = torch.save's zip archive, its end record announcing a comment | b"sha256-of-all-bytes-before:" hex digest
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

from moco.errors import InputError

_TAG = b"sha256-of-all-bytes-before:"
_COMMENT = len(_TAG) + 64  # bytes: the tag and a hex digest
_END_RECORD = 22  # bytes of zip's "end of central directory"
_END_SIGNATURE = b"PK\x05\x06"  # its first bytes


class SummingWriter(io.RawIOBase):
    """Writes an archive to `file` and computes its SHA-256.

    The end record is held back, because it must announce the comment. `finish` raises an error of `file`: raised inside
    torch's C++ writer, it would reach a destructor that also writes, and end the process.
    """

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.sum = hashlib.sha256()
        self.tail = b""
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def _pass_on(self, data: bytes | memoryview) -> None:
        if self.error is None:
            self.sum.update(data)
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= _END_RECORD:
            self._pass_on(self.tail)
            self._pass_on(view[:-_END_RECORD])
            self.tail = bytes(view[-_END_RECORD:])
        else:
            joined = self.tail + bytes(view)
            self._pass_on(joined[:-_END_RECORD])
            self.tail = joined[-_END_RECORD:]
        return len(view)

    def finish(self) -> None:
        bare = self.tail[:4] == _END_SIGNATURE and self.tail[20:] == b"\0\0"
        assert bare or self.error, "torch.save no longer ends with a bare zip end record"
        self._pass_on(self.tail[:20] + struct.pack("<H", _COMMENT))
        self._pass_on(_TAG + self.sum.hexdigest().encode())
        if self.error is not None:
            raise self.error


def _sum_of(file: IO[bytes], length: int) -> bytes:
    """Returns the hex SHA-256 of the first `length` bytes."""
    file.seek(0)
    total = hashlib.sha256()
    while length and (block := file.read(min(length, 1 << 22))):
        total.update(block)
        length -= len(block)
    return total.hexdigest().encode()


def check_bytes(path: Path, file: IO[bytes]) -> bool:
    """Raises InputError if `file`, open at `path`, is damaged.

    Returns True if a checksum of this project matches, False if the format has none.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END_RECORD - _COMMENT))
    end = file.read(_END_RECORD)
    comment = file.read()
    announced = end[:4] == _END_SIGNATURE and end[20:] == struct.pack("<H", _COMMENT)
    if announced and comment.startswith(_TAG):
        if _sum_of(file, size - _COMMENT) != comment[len(_TAG) :]:
            raise InputError(f"{path} is damaged: its bytes do not match its checksum; use an earlier checkpoint")
        return True
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        return False  # not a zip archive: maybe torch's format before 1.6, which has no checksums
    file.seek(max(0, size - _END_RECORD))
    end = file.read()
    if end[:4] != _END_SIGNATURE or end[20:] != b"\0\0":
        raise InputError(f"{path} is cut short or damaged at its end; use an earlier checkpoint")
    try:  # other projects' archives have torch's CRC32 fields, which torch itself does not check
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except Exception as error:  # zipfile raises many kinds of errors for damaged bytes
        raise InputError(f"{path} is damaged ({error}); fetch or write it again") from error
    if broken is not None:
        raise InputError(f"{path} is damaged: the CRC32 of its part {broken} is wrong; fetch or write it again")
    return False
