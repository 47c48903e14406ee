"""Files and folders that this process really may not read, also when the tests run as root."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_VERSION_3 = 0x20080522  # of the system call's header: 64 capabilities
_OF_FILES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root's right to read and write every file


@contextlib.contextmanager
def closed(path: Path) -> Iterator[None]:
    """Inside the block nobody may read, write or enter `path`: neither this thread nor those that it starts."""
    before = path.stat().st_mode
    path.chmod(0)
    try:
        with as_an_ordinary_user():
            with pytest.raises(PermissionError):  # else the tests inside would prove nothing
                os.listdir(path) if path.is_dir() else path.read_bytes()
            yield
    finally:
        path.chmod(before)


@contextlib.contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Permissions hold for this thread inside the block, also for root's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    now = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, of the low and the high 32 capabilities
    if libc.capget(header, now) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    less = (ctypes.c_uint32 * 6)(*now)
    less[0] &= ~_OF_FILES
    if libc.capset(header, less) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        if libc.capset(header, now) != 0:
            raise OSError(ctypes.get_errno(), "capset")
