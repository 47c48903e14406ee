"""Checkpoint files that are whole or refused, written so that a crash at any moment leaves the previous one intact.

torch.save writes a zip archive whose reader does not look at the CRC32 fields, so a flipped bit in a weight loads
without a word, and a kill in mid-save leaves half a file under the final name. Here a file is written beside its
final name, synced, renamed, and the SHA-256 of all its bytes is carried as the zip archive's comment, the one place
where a sum can live in the same file without any other reader noticing: plain `torch.load` still opens it.

    file = torch.save's zip archive, its end record announcing a comment | b"sha256-of-all-bytes-before:" hex digest

Whatever is wrong with a file that is read, or keeps one from being written, is an InputError that names the fix.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import socket
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from moco.errors import InputError

_TAG = b"sha256-of-all-bytes-before:"
_COMMENT = len(_TAG) + 64  # bytes: the tag and a hex digest
_END_RECORD = 22  # bytes of zip's "end of central directory", which starts with:
_END_SIGNATURE = b"PK\x05\x06"
_NAME = re.compile(r"checkpoint_(\d{4,})(?:_(\d{6,}))?\.pth\.tar")
_TEMPORARY = ".saving"


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """MoCo's file name for the end of the 0-based `epoch`; with `step`, the name for after that many steps of it."""
    return f"checkpoint_{epoch:04d}.pth.tar" if step is None else f"checkpoint_{epoch:04d}_{step:06d}.pth.tar"


def position(path: str | Path) -> tuple[int, int] | None:
    """(epochs done, steps done in the next one) as the file's name tells; None if it is not a checkpoint's name."""
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        return None
    epoch, step = match.groups()
    return (int(epoch) + 1, 0) if step is None else (int(epoch), int(step))


class _SummingWriter(io.RawIOBase):
    """Passes an archive on to `file` and sums it on the way; the end record is held back: it must announce the comment.

    An error of `file` is kept and the rest swallowed: raised inside torch's C++ writer, it would meet a destructor that
    writes too, and end the process.
    """

    def __init__(self, file: IO[bytes]):
        self.file, self.sum, self.tail = file, hashlib.sha256(), b""
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)  # a rename is safe from a power cut only when its folder has been synced
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_loadable(value: Any, where: str) -> None:
    """TypeError if `load` would refuse `value` later, when it is too late."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_loadable(entry, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _check_loadable(entry, f"{where}[{index}]")
    elif type(value) not in (int, float, bool, str, bytes, type(None)) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values only")


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` so that `path` is, at every moment, the previous file or the new one. InputError if it cannot."""
    path = Path(path)
    _check_loadable(state, "state")
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            writer = _SummingWriter(file)
            torch.save(state, writer)  # type: ignore[arg-type]  # it needs `write` alone
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; make room or fix the folder's permissions, then go on "
            "with --resume auto (earlier checkpoints are untouched)"
        ) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the folder may be gone or not a folder: the error above says so
            pass


def remove_temporaries(folder: str | Path) -> None:
    """Deletes what killed saves left in `folder`. For the one run that holds the folder's RunLock."""
    for path in Path(folder).glob(f".checkpoint_*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def _stored_sum(file: IO[bytes], size: int) -> tuple[int, bytes] | None:
    """(how many bytes are summed, hex digest) if `file` ends as ours do, else None."""
    start = size - _COMMENT - _END_RECORD
    if start < 0:
        return None
    file.seek(start)
    tail = file.read()
    comment = tail[_END_RECORD:]
    if tail[:4] != _END_SIGNATURE or tail[20:22] != struct.pack("<H", _COMMENT) or not comment.startswith(_TAG):
        return None
    return size - _COMMENT, comment[len(_TAG) :]


def _check_bytes(path: Path, file: IO[bytes], size: int) -> bool:
    """InputError if the bytes are known to be damaged. True if a checksum of ours vouches for them."""
    stored = _stored_sum(file, size)
    if stored is not None:
        length, digest = stored
        file.seek(0)
        total, left = hashlib.sha256(), length
        while left:
            block = file.read(min(left, 1 << 22))
            if not block:
                break
            total.update(block)
            left -= len(block)
        if total.hexdigest().encode() != digest:
            raise InputError(
                f"{path} is damaged: its bytes do not match its checksum; use an earlier one (--resume auto does)"
            )
        return True
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        return False  # torch's format before 1.6, which carries no sums at all
    file.seek(max(0, size - _END_RECORD))
    end = file.read()
    if end[:4] != _END_SIGNATURE or end[20:] != b"\0\0":
        raise InputError(f"{path} is cut short or damaged at its end; use an earlier checkpoint (--resume auto does)")
    file.seek(0)
    try:  # an archive of another project: torch wrote CRC32s that torch does not check
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except Exception as error:  # zipfile raises whatever the damaged bytes lead it to
        raise InputError(f"{path} is damaged ({error}); fetch or write it again") from error
    if broken is not None:
        raise InputError(f"{path} is damaged: the CRC32 of its part {broken} is wrong; fetch or write it again")
    return False


def load(path: str | Path) -> dict[str, Any]:
    """The dict in a checkpoint file, on the CPU. Ours are verified first, other projects' as far as their format lets.

    InputError: missing, a folder, empty, damaged, no checkpoint, or a pickle that would run code (weights_only=True).
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise InputError(f"{path} is empty; use an earlier checkpoint (--resume auto does)")
            vouched = _check_bytes(path, file, size)
            file.seek(0)
            state = _unpickle(path, file, vouched)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}; check the path") from error
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a checkpoint (a dict); check the path")
    return state


def _unpickle(path: Path, file: IO[bytes], vouched: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if names or "nsupported" in str(error):
            what = f" ({names[0]})" if names else ""
            raise InputError(
                f"{path} is refused: it holds Python objects other than tensors and plain values{what}, and loading "
                "them could run code; save it again with tensors, numbers, strings, lists and dicts only"
            ) from error
        raise InputError(f"{path} is not a checkpoint that torch can read; check the path") from error
    except Exception as error:  # bytes that are no checkpoint make torch raise nearly anything
        why = "needs another version of torch" if vouched else "is not a checkpoint that torch can read"
        raise InputError(f"{path} {why} ({type(error).__name__}); check the path") from error


def verify(path: str | Path) -> None:
    """InputError unless `load(path)` would succeed; for our own files by their checksum alone."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size and _check_bytes(Path(path), file, size):
                return
    except OSError:
        pass  # load says it better
    load(path)


def checkpoints(folder: str | Path) -> list[Path]:
    """The files in `folder` that bear a checkpoint's name, in the order of the positions that those tell."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if position(path)), key=lambda path: position(path) or (0, 0))


def latest(folder: str | Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint in `folder` that verifies (None: there is none); each newer one with why it was skipped."""
    skipped: list[tuple[Path, str]] = []
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except InputError as error:
            skipped.append((path, str(error)))
        else:
            return path, skipped
    return None, skipped


def set_aside(folder: str | Path, after: tuple[int, int]) -> list[Path]:
    """Renames the checkpoints past `after` (the position resumed from) to *.aside, and returns their new names.

    They are damaged, or belong to a future that is now trained again; under their old names `latest` would find them.
    """
    renamed = []
    for path in checkpoints(folder):
        if (position(path) or after) > after:
            renamed.append(path.with_name(path.name + ".aside"))
            os.replace(path, renamed[-1])
    return renamed
