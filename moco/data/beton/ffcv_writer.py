"""Runs FFCV's DatasetWriter without its hangs.

It waits for ever if one of its processes dies. Any exception makes a process die: an unreadable or greyscale image, a
picture larger than a page, a full disk. Here every image is upright RGB before FFCV gets it, an unreadable one is noted
and not raised, and the wait ends when a process dies. placing.py chooses the places of the samples.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import multiprocessing.queues
import signal
import sys
import time
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moco.data.beton.placing import Places
from moco.data.decode import BadImage
from moco.data.source import Source
from moco.randomness import Purpose, stream_key, uniform

ROWS_PER_TASK = 16
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

TODO = 0
WRITTEN = 1
BAD = 2
PLACEHOLDER = np.zeros((1, 1, 3), np.uint8)  # of a bad image: FFCV needs some pixels; the entry is removed at the end


class Job:
    """Holds the data set that FFCV's writing processes read.

    They write their results to memory that this process shares.
    """

    def __init__(
        self, source: Source, kept: np.ndarray, mode: str, quality: int, max_resolution: int | None, proportion: float
    ) -> None:
        from ffcv.fields import IntField, RGBImageField

        self.source = source
        self.kept = kept
        # any number of processes makes the same samples JPEG; FFCV's own choice depends on forked generators
        chance = uniform(stream_key(0, 0, Purpose.ORDER), kept, 1)[:, 0] if mode == "proportion" else None
        self.modes = np.where(chance < proportion, "jpg", "raw") if chance is not None else np.full(len(kept), mode)
        self.state = _shared(len(kept), np.uint8)
        self.crc32 = _shared(len(kept), np.uint32)
        self.reasons: multiprocessing.queues.SimpleQueue[tuple[int, str]] = multiprocessing.SimpleQueue()
        self.found: dict[int, str] = {}
        self.image = RGBImageField("raw", max_resolution=max_resolution, jpeg_quality=quality)
        # set on the instance: FFCV writes the name of a field's class to the file, so a subclass would not be standard
        self.image.encode = types.MethodType(self._encode, self.image)
        self.fields = {"image": self.image, "label": IntField()}
        self.at = 0

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        self.at = row
        index = int(self.kept[row])
        try:
            pixels = self.source.decode(index)
        except BadImage as problem:
            self._set_bad(row, str(problem))
            pixels = PLACEHOLDER
        return pixels, int(self.source.labels[index])

    def _set_bad(self, row: int, why: str) -> None:
        self.state[row] = BAD
        self.reasons.put((int(self.kept[row]), " ".join(why.split())))

    def _encode(self, field: Any, destination: np.ndarray, image: np.ndarray, malloc: Callable[[int], Any]) -> None:
        """Encodes as FFCV does, and stores the checksum of the result."""
        stored: list[np.ndarray] = []

        def remember(size: int) -> tuple[int, np.ndarray]:
            place, memory = malloc(size)
            stored.append(memory)
            return place, memory

        row = self.at
        field.write_mode = "raw" if self.state[row] == BAD else str(self.modes[row])
        try:
            type(field).encode(field, destination, _shrunk(image, field.max_resolution), remember)
        except (OSError, MemoryError):  # the file cannot be written, or this process has no memory
            raise
        except Exception as problem:  # an error of OpenCV; nothing has been stored yet
            self._set_bad(row, f"it cannot be encoded: {problem}")
            field.write_mode = "raw"
            type(field).encode(field, destination, PLACEHOLDER, remember)
        self.crc32[row] = zlib.crc32(stored[-1].data)
        if self.state[row] == TODO:
            self.state[row] = WRITTEN

    def problems(self) -> dict[int, str]:
        """Returns index -> reason for the bad images found so far."""
        while not self.reasons.empty():
            index, why = self.reasons.get()
            self.found[index] = why
        return dict(sorted(self.found.items()))


def _shrunk(image: np.ndarray, most: int | None) -> np.ndarray:
    """Returns `image`, shrunk if FFCV would make its shorter side 0 pixels.

    Its shorter side is then 1 pixel.
    """
    height, width = image.shape[:2]
    if most is None or max(height, width) <= most or int(most / max(height, width) * min(height, width)) >= 1:
        return image
    import cv2

    size = (most, 1) if width > height else (1, most)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _shared(n: int, kind: type[np.generic]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, max(1, n * np.dtype(kind).itemsize)), kind, n)  # forked processes share it


class ProcessDied(Exception):
    """Says that a writing process ended early; the message names the fix."""


def run_guarded(job: Job, path: Path, page_size: int, workers: int, watch: Callable[[], None]) -> None:
    """Writes the job's samples to `path`, and notices when a process dies.

    The processes and the layout are FFCV's. watch: called several times a second; if it raises, the writing ends.
    Raises ProcessDied, OSError.
    """
    from ffcv.writer import DatasetWriter

    writer = DatasetWriter(str(path), job.fields, page_size=page_size, num_workers=workers)
    writer.num_samples = len(job)
    writer.prepare()
    fork = multiprocessing.get_context("fork")  # the job, with its shared arrays, is inherited, not pickled
    tasks = fork.Queue()
    allocations = fork.SimpleQueue()
    for start in range(0, len(job), ROWS_PER_TASK):
        tasks.put([(row, row) for row in range(start, min(start + ROWS_PER_TASK, len(job)))])
    for _ in range(workers):
        tasks.put(None)
    failures: multiprocessing.queues.SimpleQueue[str] = fork.SimpleQueue()  # errors of the system
    done = fork.Value(ctypes.c_uint64, 0)
    allocator = Places(path, writer.data_region_start, page_size)
    shared = (tasks, writer.metadata_sm, writer.metadata_type, writer.fields, allocator, done, allocations, job)
    processes = [fork.Process(target=_work, args=(failures, shared), daemon=True) for _ in range(workers)]
    try:
        for process in processes:
            process.start()
        entries: list[tuple[int, int, int]] = []
        waiting = len(processes)
        while waiting:
            watch()
            if dead := [process.exitcode for process in processes if process.exitcode not in (None, 0)]:
                raise ProcessDied(_why_it_died(dead[0], failures))
            if allocations.empty():
                time.sleep(0.02)
            else:
                entries += allocations.get()
                waiting -= 1
        watch()
        _finalize(writer, entries, job.state == WRITTEN)
    finally:
        for process in processes:
            process.kill()
            process.join()
        tasks.cancel_join_thread()  # unread tasks must not keep this process from ending
        tasks.close()
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()


def _work(failures: multiprocessing.queues.SimpleQueue[str], arguments: tuple[Any, ...]) -> None:
    """Runs a writing process, which must not outlive its parent.

    Otherwise it would wait for ever for its results to be read.
    """
    from ffcv.writer import worker_job_indexed_dataset

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    try:
        worker_job_indexed_dataset(*arguments)
    except OSError as problem:
        failures.put(problem.strerror or str(problem))
        sys.exit(1)


def _why_it_died(code: int, failures: multiprocessing.queues.SimpleQueue[str]) -> str:
    if not failures.empty():
        return f"{failures.get()}; make room or choose another place"
    if code < 0:
        return f"a writing process was killed ({signal.Signals(-code).name}); check the free memory, or lower -j"
    return f"a writing process died with exit code {code}; see its error above"


def _finalize(writer: Any, entries: list[tuple[int, int, int]], good: np.ndarray) -> None:
    """Ends FFCV's writing without the placeholders of bad images."""
    samples = np.frombuffer(writer.metadata_sm.buf, writer.metadata_type, len(good))
    count = int(good.sum())
    samples[:count] = samples[good].copy()
    samples[count:] = np.zeros(1, samples.dtype)
    del samples  # otherwise the shared memory cannot be closed
    place = np.cumsum(good) - 1
    writer.header["num_samples"] = count
    writer.finalize([(int(place[row]), start, size) for row, start, size in entries if good[row]])
