"""Writes files atomically.

A file is written beside its final name, synced and renamed, and its folder is synced. A crash at any moment leaves the
previous file or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from moco.errors import ESCAPED, InputError

_TEMPORARY = ".saving"
ADVICE = "make room or choose another place"


def write_file(path: str | Path, write: Callable[[IO[bytes]], object], advice: str = ADVICE) -> None:
    """Calls `write` with a binary file that becomes `path` if nothing fails.

    InputError for an OSError; it ends in `advice`, which names the fix.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{_TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error, advice) from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone or not a folder: the error above says so
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes bytes; makes missing folders. InputError as `write_file`."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    write_file(path, lambda file: file.write(content))


def write_text(path: str | Path, content: str) -> None:
    """Writes text in UTF-8; escapes what UTF-8 cannot encode. InputError as `write_file`."""
    write_bytes(path, content.encode("utf-8", ESCAPED))


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON. InputError as `write_file`.

    ValueError for a number that is not finite, because JSON has no such number.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def cannot_write(path: str | Path, error: OSError, advice: str = ADVICE) -> InputError:
    """Returns the InputError for a path that cannot be written."""
    return InputError(f"cannot write {path}: {error.strerror or error}; {advice}")


def remove_temporaries(folder: str | Path) -> None:
    """Deletes the temporary files of killed writes in `folder`.

    Only the run that holds the folder's RunLock may call it.
    """
    for path in Path(folder).glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder, and its file system keeps renames in a journal
        return
    descriptor = os.open(folder, os.O_RDONLY)  # a rename is safe from a power cut only when its folder has been synced
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
