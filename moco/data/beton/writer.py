"""Writes a source as a standard .beton file with its side data.

A file gets its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from moco.data.beton.ffcv_writer import TODO, WRITTEN, Job, ProcessDied, run_guarded
from moco.data.beton.file import BetonFile, require_ffcv
from moco.data.beton.side_data import SideData, side_path
from moco.data.decode import BadImage
from moco.data.source import Source
from moco.errors import InputError

MODES = ("raw", "jpg", "proportion")
LARGEST_PAGE = 1 << 31
LONGEST_SIDE = 65_500  # pixels: libjpeg's limit; the table's is 65,535
SHOWN = 10  # number of bad files in a message


def write_beton(
    source: Source,
    out: Path,
    *,
    mode: str = "jpg",
    quality: int = 90,
    max_resolution: int | None = None,
    proportion: float = 0.5,
    workers: int = 1,
    skip_bad_images: bool = False,
    origin: dict[str, Any] | None = None,
) -> SideData:
    """Writes `out` and its side data; returns the side data.

    mode: raw pixels, JPEG of `quality`, or a `proportion` of JPEGs among raw ones. max_resolution: the most pixels of
    the longer side. origin: kept in the side data. Indices are those of the source without the images left out.
    InputError names the images that cannot be read, and no file is left.
    """
    require_ffcv()
    partial = out.with_name(out.name + ".partial")
    with _only_writer(out, partial):
        try:
            sizes, bad = _sizes(source, workers, out.name)
            _refuse(source, bad, skip_bad_images)
            kept = np.array([i for i in range(len(source)) if i not in bad], dtype=np.int64)
            job = Job(source, kept, mode, quality, max_resolution, proportion)
            page_size = _page_size(source, kept, sizes[kept], max_resolution)
            _run(job, partial, page_size, workers, out.name, skip_bad_images)
            bad |= job.problems()
            written = job.state == WRITTEN
            kept = kept[written]
            side = SideData(
                classes=source.classes,
                names=[_short_name(source, i) for i in kept.tolist()],
                original_size=sizes[kept],
                crc32=job.crc32[written],
                written_from=origin or {},
                left_out={_short_name(source, i): why for i, why in bad.items()},
            )
            _publish(partial, out, side)
        except (ProcessDied, OSError) as problem:
            raise InputError(f"{out} could not be written: {problem}") from None
        finally:
            for leftover in (partial, _partial_side(out)):
                leftover.unlink(missing_ok=True)
    return side


@contextlib.contextmanager
def _only_writer(out: Path, partial: Path) -> Iterator[None]:
    """Creates `partial` and holds its lock. InputError if it is locked."""
    import fcntl  # Windows has neither it nor FFCV

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = partial.open("ab")
    except OSError as problem:
        raise InputError(f"{out} could not be written: {problem}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is writing {out}: wait for it, or choose another name") from None
        yield


def _run(job: Job, partial: Path, page_size: int, workers: int, title: str, skip_bad_images: bool) -> None:
    """Writes the images of `job` to `partial`, with a progress bar.

    InputError as soon as one is bad, unless bad ones are skipped.
    """
    with progress_bar(len(job), title) as bar:

        def watch() -> None:
            bar.update(int((job.state != TODO).sum()) - bar.n)
            _refuse(job.source, job.problems(), skip_bad_images)

        run_guarded(job, partial, page_size, workers, watch)


def _sizes(source: Source, workers: int, title: str) -> tuple[np.ndarray, dict[int, str]]:
    """Returns the original (height, width) of every image, and bad images.

    Most bad files are found here, before anything is written.
    """
    sizes = np.zeros((len(source), 2), dtype=np.uint32)
    bad: dict[int, str] = {}

    def look(index: int) -> None:
        try:
            sizes[index] = source.size(index)
        except BadImage as problem:
            bad[index] = str(problem)

    with ThreadPoolExecutor(workers) as pool, progress_bar(len(source), f"{title}: sizes") as bar:
        for _ in pool.map(look, range(len(source))):
            bar.update()
    return sizes, dict(sorted(bad.items()))


def progress_bar(total: int, title: str) -> tqdm:
    """Shows images done, speed and time left.

    It is updated ten times a second on a terminal, and every ten seconds in a log file.
    """
    every = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=title, unit="img", smoothing=0.05, dynamic_ncols=True, mininterval=every)


def _short_name(source: Source, index: int) -> str:
    """Returns the name without the common folder, valid in other places."""
    paths = getattr(source, "paths", None)
    return paths[index] if paths is not None else source.name(index)


def _refuse(source: Source, bad: dict[int, str], skip: bool) -> None:
    if len(bad) == len(source):
        raise InputError(f"none of the {len(bad)} images can be read; the first: {source.name(0)}: {bad[0]}")
    if bad and not skip:
        names = "; ".join(f"{source.name(i)}: {why}" for i, why in list(bad.items())[:SHOWN])
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise InputError(
            f"{len(bad)} of {len(source)} images cannot be read ({names}{more}): "
            "repair or remove them, or pass --skip-bad-images to leave them out"
        )


def _page_size(source: Source, kept: np.ndarray, sizes: np.ndarray, max_resolution: int | None) -> int:
    """Returns the bytes of a page, which must hold the largest image.

    It is the smallest size that FFCV allows, but at least 8 MiB. A sample must be inside one page, and the file's table
    has 16 bits for a side. Raises InputError, naming the image, for one that is too large for these.
    """
    longest = sizes.max(1).astype(float)
    shrink = np.minimum(1.0, (max_resolution or np.inf) / longest)
    stored = np.maximum(1.0, sizes.astype(float) * shrink[:, None])
    largest = stored.prod(1) * 3
    need = int(largest.max()) + (1 << 16)
    page = max(1 << 23, 1 << (need - 1).bit_length())
    if stored.max() > LONGEST_SIDE:
        name = source.name(int(kept[stored.max(1).argmax()]))
        height, width = sizes[stored.max(1).argmax()].tolist()
        raise InputError(
            f"{name} has {width}×{height} pixels, but a side in a .beton has at most {LONGEST_SIDE}: "
            "pass --max-resolution, or remove it"
        )
    if page > LARGEST_PAGE:
        raise InputError(
            f"{source.name(int(kept[largest.argmax()]))} has {need >> 20} MiB of pixels, too many for a .beton: "
            "pass --max-resolution"
        )
    return page


def _partial_side(out: Path) -> Path:
    return side_path(out).with_name(side_path(out).name + ".partial")


def _publish(partial: Path, out: Path, side: SideData) -> None:
    """Checks the written file, completes the side data, and renames both.

    The .beton is renamed last.
    """
    file = BetonFile(partial)
    side.file_bytes, side.head_crc32, side.tail_crc32 = file.table_checksums()
    temporary = _partial_side(out)
    temporary.write_text(side.dumps(), encoding="utf-8")
    for path in (partial, temporary):
        with path.open("rb") as written:
            os.fsync(written.fileno())
    temporary.replace(side_path(out))
    partial.replace(out)
    folder = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
