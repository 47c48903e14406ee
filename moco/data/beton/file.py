"""Reads a .beton file with FFCV's reader and JPEG decoder.

FFCV's own loader compiles its pipelines in every process (seconds), decodes once per view, draws crops that cannot be
seeded, and gives constant or stale pixels for damaged data without an error. Only its file format and its C functions
are used, because they do not have these faults. The file's structure is checked on opening, each JPEG's checksum and
the decoder's return code at every read. pread reads the pixels, so a file that shrinks gives an error; a memory map
would end the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from moco.data.beton.side_data import SideData, side_path
from moco.data.boxes import Size
from moco.data.decode import BadImage, open_image
from moco.data.listing import says_what_cannot_be_read
from moco.data.source import CACHES, Pixels
from moco.errors import InputError

INSTALL = (
    "apt-get install -y libopencv-dev libturbojpeg0-dev pkg-config g++ && "
    "pip install ffcv==1.0.2 numba setuptools (or pip install '.[ffcv]')"
)
MOST_CLASSES = 1 << 20  # a larger label is an identifier, a time or a hash
JPEG = 0  # FFCV's mode of a JPEG sample; 1 is raw


def require_ffcv() -> Any:
    """Imports ffcv. InputError with the install line if that fails."""
    try:
        import ffcv.libffcv
        import ffcv.reader
    except ImportError as problem:
        raise InputError(f".beton files need FFCV, which is not installed here ({problem}): {INSTALL}") from None
    return ffcv


class BetonFile:
    """Reads a .beton file's tables. InputError for an incomplete file."""

    @says_what_cannot_be_read
    def __init__(self, path: str | Path) -> None:
        ffcv = require_ffcv()
        self.path = Path(path)
        if not self.path.is_file():
            split = " --split val" if self.path.name.endswith("val.beton") else ""
            raise InputError(
                f"there is no file {self.path}: write it with `python -m moco.data.beton write SRC {self.path}{split}`"
            )
        self.path.open("rb").close()  # raises the system's error if this user may not read it
        try:
            reader = ffcv.reader.Reader(str(self.path))
        except Exception as problem:  # FFCV has no checks: IndexError, AssertionError, ValueError, ...
            raise self._damaged(f"{type(problem).__name__}: {problem}") from None
        self.table_start = int(reader.header["alloc_table_ptr"])
        self.file_bytes = self.path.stat().st_size
        image = [i for i, kind in enumerate(reader.handlers.values()) if type(kind).__name__ == "RGBImageField"]
        number = [i for i, kind in enumerate(reader.handlers.values()) if type(kind).__name__ == "IntField"]
        if len(image) != 1:
            raise InputError(f"{self.path} has {len(image)} image fields ({', '.join(reader.field_names)}), not one")
        samples = reader.metadata[f"f{image[0]}"]
        self.head_bytes = 24 + reader.field_descriptors.nbytes + reader.metadata.nbytes
        self.mode = samples["mode"].copy()
        self.height = samples["height"].astype(np.int64)
        self.width = samples["width"].astype(np.int64)
        self.start = samples["data_ptr"].astype(np.int64)
        self.labels = (
            reader.metadata[f"f{number[0]}"].astype(np.int64) if number else np.full(len(samples), -1, dtype=np.int64)
        )
        self.stored_bytes = self._check(reader)
        self.side = self._side_data()

    def __len__(self) -> int:
        return len(self.start)

    def _check(self, reader: Any) -> np.ndarray:
        """Returns each sample's bytes. InputError if tables and file size disagree."""
        table = reader.alloc_table
        if self.table_start + table.nbytes != self.file_bytes:
            raise self._damaged("the table at its end is cut off")
        if len(self) != reader.num_samples or not len(self):
            raise self._damaged(f"{len(self)} samples where its header says {reader.num_samples}")
        order = np.argsort(table["ptr"])
        place = np.searchsorted(table["ptr"][order], self.start)
        found = place < len(table)
        found[found] &= table["ptr"][order][place[found]] == self.start[found]
        if not found.all():
            raise self._damaged(f"sample {int(np.argmin(found))} has no data")
        size: np.ndarray = table["size"][order][place].astype(np.int64)
        whole = (self.start >= self.head_bytes) & (self.start + size <= self.table_start)
        whole &= (self.mode == JPEG) | (size == 3 * self.height * self.width)
        if not whole.all():
            raise self._damaged(f"the data of sample {int(np.argmin(whole))} do not fit its size")
        return size

    def _damaged(self, detail: str) -> InputError:
        return InputError(f"{self.path} is damaged or is not a .beton file ({detail}): write it again")

    def _side_data(self) -> SideData | None:
        path = side_path(self.path)
        if not path.exists():
            return None
        try:
            side = SideData.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise InputError(f"{path} cannot be used ({problem}): write the .beton file again, or remove it") from None
        if (side.file_bytes, side.head_crc32, side.tail_crc32) != self.table_checksums() or len(side.crc32) != len(
            self
        ):
            raise self._damaged(f"its tables are not those that {path.name} was written for")
        return side

    def table_checksums(self) -> tuple[int, int, int]:
        """Returns file size, and CRC-32 of the head and the allocation table."""
        with self.path.open("rb") as file:
            head = zlib.crc32(file.read(self.head_bytes))
            file.seek(self.table_start)
            return self.file_bytes, head, zlib.crc32(file.read())


class BetonSource:
    """Reads the samples of any .beton file with an RGBImageField.

    cache: "os" leaves the file to the page cache, which all processes of a node share. "ram" also reads all of it now
    and locks it there, if the system allows it. "none" drops what was read, for files much larger than the memory.
    """

    def __init__(self, path: str | Path, *, cache: str = "os") -> None:
        if cache not in CACHES:
            raise InputError(f"unknown cache {cache!r}: choose one of {', '.join(CACHES)}")
        file = self.file = BetonFile(path)
        self.labels = file.labels
        self.keep = cache != "none"
        largest = int(self.labels.max())
        if largest >= MOST_CLASSES:
            self.labels = np.full_like(self.labels, -1)
        self.classes = file.side.classes if file.side else [str(label) for label in range(int(self.labels.max()) + 1)]
        jpegs = int((file.mode == JPEG).sum())
        self.notes = [
            f"reading {file.path} through FFCV: {len(file)} images, {jpegs} of them JPEG, "
            f"{file.file_bytes / 2**30:.2f} GiB, cache {cache}"
        ]
        if cache == "none" and not hasattr(os, "posix_fadvise"):
            self.notes.append("--cache none has no effect on this system: what was read stays in the page cache")
        if largest >= MOST_CLASSES:
            self.notes.append(f"labels of {file.path} go up to {largest}, so they are not classes: read as unlabelled")
        self._descriptor = os.open(file.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._lock = _lock_in_memory(self._descriptor, file, self.notes) if cache == "ram" else None
        self._scratch = threading.local()
        self._imdecode = require_ffcv().libffcv.ctypes_imdecode

    def __len__(self) -> int:
        return len(self.file)

    def name(self, index: int) -> str:
        side = self.file.side
        return f"{self.file.path}: {side.names[index]}" if side else f"{self.file.path}"

    def size(self, index: int) -> Size:
        side = self.file.side
        if side is None:
            return int(self.file.height[index]), int(self.file.width[index])
        height, width = side.original_size[index].tolist()
        return height, width

    def open(self, index: int) -> BetonPicture:
        return BetonPicture(self, index)

    def decode(self, index: int) -> np.ndarray:
        return self.open(index).decode().array.copy()

    def read(self, index: int, start: int = 0, count: int | None = None) -> np.ndarray:
        """Returns stored bytes of a sample from `start` on: uint8 [count].

        They are valid until this thread reads again. Raises BadImage.
        """
        count = int(self.file.stored_bytes[index]) - start if count is None else count
        data = self._buffer("encoded", count)
        offset = int(self.file.start[index]) + start
        got = 0
        try:
            while got < count and (more := os.preadv(self._descriptor, [data.data[got:]], offset + got)):
                got += more
        except OSError as problem:
            raise BadImage(problem.strerror or str(problem)) from None
        if not self.keep and hasattr(os, "posix_fadvise"):  # macOS lacks it
            os.posix_fadvise(self._descriptor, offset, count, os.POSIX_FADV_DONTNEED)
        if got < count:
            raise BadImage("the .beton file has become shorter since it was opened")
        return data

    def jpeg(self, index: int, height: int, width: int, reduction: int) -> np.ndarray:
        """Decodes a JPEG to uint8 [ceil(H/k), ceil(W/k), 3]. Raises BadImage.

        The array is valid until this thread decodes again.
        """
        data = self.read(index)
        side = self.file.side
        if side is not None and zlib.crc32(data.data) != side.crc32[index]:
            raise BadImage("its bytes in the .beton file have changed since they were written")
        shape = (-(-height // reduction), -(-width // reduction), 3)
        pixels = self._buffer("pixels", shape[0] * shape[1] * 3)
        failed = self._imdecode(
            data.ctypes.data, data.size, height, width, pixels.ctypes.data, height, width, 0, 0, 8 // reduction, 8,
            False, False,
        )  # fmt: skip
        if failed:
            raise BadImage("libjpeg cannot decode it")
        if side is None and open_image(data.tobytes()).size != (width, height):  # only this check finds it
            raise BadImage("its size differs from that in the table")
        return pixels.reshape(shape)

    def _buffer(self, purpose: str, count: int) -> np.ndarray:
        """Returns this thread's buffer, which is reused to avoid fresh pages."""
        buffer = getattr(self._scratch, purpose, None)
        if buffer is None or len(buffer) < count:
            buffer = np.empty(count * 5 // 4, dtype=np.uint8)
            setattr(self._scratch, purpose, buffer)
        return buffer[:count]


class BetonPicture:
    """Holds a sample of a .beton file, not yet decoded."""

    def __init__(self, source: BetonSource, index: int) -> None:
        self.source = source
        self.index = index
        self.size = source.size(index)
        self.stored: Size = (int(source.file.height[index]), int(source.file.width[index]))

    def decode(self, reduction: int = 1, rows: tuple[int, int] | None = None) -> Pixels:
        height, width = self.stored
        if self.source.file.mode[self.index] == JPEG:
            return Pixels(self.source.jpeg(self.index, height, width, reduction), reduction)
        first, end = rows or (0, height)
        data = self.source.read(self.index, first * width * 3, (end - first) * width * 3)
        return Pixels(data.reshape(end - first, width, 3), top=first)


def _lock_in_memory(descriptor: int, file: BetonFile, notes: list[str]) -> mmap.mmap:
    """Reads the whole file into memory, where the returned map keeps it."""
    with contextlib.suppress(OSError, StopIteration), Path("/proc/meminfo").open() as lines:
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        if file.file_bytes > free:
            raise InputError(
                f"--cache ram needs {file.file_bytes / 2**30:.1f} GiB for {file.path} and {free / 2**30:.1f} "
                "GiB are free: use --cache os, or a smaller file"
            )
    pages = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    libc = ctypes.CDLL(None, use_errno=True)
    address = np.frombuffer(pages, np.uint8).ctypes.data
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(pages))):  # reads every page, and keeps it
        pages.madvise(mmap.MADV_WILLNEED)
        notes.append(f"{file.path} is cached but not locked in memory: raise `ulimit -l` to lock it")
    return pages
