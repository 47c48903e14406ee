"""Places samples in a .beton file one after the other.

No sample crosses the end of a page. FFCV's allocator gives every writing process whole pages, and a page for the
header. One huge picture needs pages of 512 MiB, and then a file of thumbnails has more than a gigabyte. FFCV's readers
require only that each sample is inside one page.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np


class Places:
    """Gives places to samples, in the interface of FFCV's MemoryAllocator.

    FFCV's writing processes inherit it by fork and call it. start: the first free byte of the file. A sample is written
    when the next one asks for a place.
    """

    def __init__(self, path: Path, start: int, page_size: int) -> None:
        self.path = path
        self.page_size = page_size
        self.allocations: list[tuple[int, int, int]] = []  # (row, place, bytes) of this process
        self._next = multiprocessing.get_context("fork").Value(ctypes.c_uint64, start)
        self._row = -1
        self._waiting: tuple[int, np.ndarray] | None = None
        self._file = -1

    def set_current_sample(self, row: int) -> None:
        self._row = row

    def malloc(self, size: int) -> tuple[int, np.ndarray]:
        """Returns (place in the file, uint8 [size] to fill)."""
        self._write()
        if size > self.page_size:
            raise ValueError(f"a sample of {size} bytes for pages of {self.page_size}")
        with self._next.get_lock():
            place = int(self._next.value)
            if place // self.page_size != (place + size - 1) // self.page_size:
                place = (place // self.page_size + 1) * self.page_size
            self._next.value = place + size
        memory = np.empty(size, np.uint8)
        self._waiting = place, memory
        self.allocations.append((self._row, place, size))
        return place, memory

    def _write(self) -> None:
        if self._waiting is None:
            return
        place, memory = self._waiting
        self._waiting = None
        done = 0
        while done < len(memory):
            done += os.pwrite(self._file, memory.data[done:], place + done)

    def __enter__(self) -> Places:
        self._file = os.open(self.path, os.O_WRONLY)
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._write()
        os.close(self._file)
