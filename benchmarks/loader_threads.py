"""Measures how long a process's loading threads hold the interpreter lock.

    python -m benchmarks.loader_threads [--threads 16]

It also measures how much they slow the thread that feeds a GPU.
This is a model of a machine with a core for each thread. The loader runs as it is, with one change:
decoding and resampling are replaced by sleeps of the same length, as measured here on one thread.
A sleep holds neither lock nor core, like native work on a core of its own.
Another thread starts 1,000 operations for each step of 256 images, as a training step does.
Images of a folder are decoded by OpenCV, which must be installed.

The time under the lock is measured as the CPU time of a thread that cuts images without decoding and resampling.
This is an upper bound: it includes reading and checksums, which release the lock.
The machine must be idle. CPU time too grows by half if other programs share cores and caches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.data_loading import made_up_photos
from benchmarks.measuring import Row, parser, report
from moco.data import decode, folder
from moco.data.beton.file import BetonSource
from moco.data.beton.writer import write_beton
from moco.data.folder import FolderSource
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import Source
from moco.data.threads import Crew

IMAGES, SIZE, BATCH, LAUNCHES = 256, 224, 64, 1000
IMAGES_OF_A_STEP = 256
TARGETS = {"folder": 3000, ".beton, jpg": 5000, ".beton, raw": None}


class Native:
    """Times calls that release the lock, or replaces them.

    instead: what is called in their place; the result is then None.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self.instead: Callable[[], Any] | None = None  # None: the call itself

    def __call__(self, real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.instead is not None:
            self.instead()
            return None
        start = time.thread_time()
        out = real(*arguments, **named)
        self.seconds += time.thread_time() - start
        self.calls += 1
        return out


@contextmanager
def native_work(source: Source) -> Iterator[dict[str, Native]]:
    """Replaces native calls of a source and of the loader by `Native`.

    It does so inside the `with` block, which gets both by name: decoding and resampling.
    """
    works = {"decoding": Native(), "resampling": Native()}
    pixels = np.zeros((375, 500, 3), np.uint8)  # of every picture when nothing is decoded

    def decoded(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            out = works["decoding"](real, *arguments)
            return pixels if out is None else out

        return call

    resampling = {name: partial(works["resampling"], getattr(decode, name)) for name in ("ANTIALIASED", "PLAIN")}
    with patch.multiple(decode, **resampling):
        if isinstance(source, BetonSource):
            real = source._imdecode
            source._imdecode = lambda *arguments: works["decoding"](real, *arguments) or 0
            yield works
            source._imdecode = real
        else:
            with patch.object(folder, "decode_plain", decoded(folder.decode_plain)):
                yield works


def cpu_seconds(work: Callable[[int], Any], rounds: int) -> float:
    """Returns the CPU seconds of this thread per image.

    They are the least of all rounds.
    """
    of_rounds = []
    for _ in range(rounds):
        start = time.thread_time()
        for i in range(IMAGES):
            work(i)
        of_rounds.append((time.thread_time() - start) / IMAGES)
    return min(of_rounds)


def measure(source: Source, threads: int, rounds: int) -> dict[str, float]:
    """Returns the times of an image and the speed in the model.

    whole: CPU seconds of all work on an image. held: those under the lock, at most.
    images/s: speed of the loader in the model.
    stretch: time of the launches beside the loader, as a multiple of their time alone.
    """
    loader = Loader(source, Sampler(len(source), min(BATCH, len(source)), 0), size=SIZE, workers=1)
    draws = loader.draws(0, np.arange(len(source)))
    crops = torch.empty((len(source), 2, SIZE, SIZE, 3), dtype=torch.uint8)

    def cut(i: int) -> None:
        i %= len(source)
        loader.cut(i, draws[i], crops[i])

    with native_work(source) as works:
        whole = cpu_seconds(cut, rounds)
        lengths = {name: work.seconds / max(work.calls, 1) for name, work in works.items()}
        for work in works.values():
            work.instead = lambda: None
        held = cpu_seconds(cut, rounds)
        for name, work in works.items():
            work.instead = lambda seconds=lengths[name]: time.sleep(seconds)
        found = in_the_model(loader, threads, rounds)
    return {"whole": whole, "held": held, **found}


def in_the_model(loader: Loader, threads: int, rounds: int) -> dict[str, float]:
    """Runs the model and returns its images/s and stretch.

    The loader's threads cut one image after the other. This thread starts the operations of each step.
    """
    source = loader.source
    draws = loader.draws(0, np.arange(len(source)))
    crops = [torch.empty((2, SIZE, SIZE, 3), dtype=torch.uint8) for _ in range(threads)]
    alone = [launches() for _ in range(rounds)]
    done = [0] * threads
    ended = [False]

    def work(thread: int) -> None:
        while not ended[0]:
            i = (thread + threads * done[thread]) % len(source)
            loader.cut(i, draws[i], crops[thread])
            done[thread] += 1

    with Crew(threads) as crew:
        start = time.perf_counter()
        for thread in range(threads):
            crew.submit(lambda thread=thread: work(thread))
        beside = []
        for _ in range(rounds):
            beside.append(launches())
            # the device computes until the loader has the next step's images; this thread waits without the lock
            before = sum(done)
            while sum(done) - before < IMAGES_OF_A_STEP:
                time.sleep(0.002)
        seconds, images = time.perf_counter() - start, sum(done)
        ended[0] = True
    return {"images/s": images / seconds, "stretch": statistics.median(beside) / statistics.median(alone)}


def launches() -> float:
    """Returns the seconds that the operations of a step take.

    Each operation takes a few microseconds.
    """
    x = torch.zeros(1)
    start = time.perf_counter()
    for _ in range(LAUNCHES):
        x.add_(1)
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--threads", type=int, default=16)
    options = options_of.parse_args(argv)
    torch.set_num_threads(1)
    images = 8 if options.trial else IMAGES
    with tempfile.TemporaryDirectory() as scratch:
        made_up_photos(Path(scratch) / "images", images)
        sources: dict[str, Source] = {"folder": FolderSource(Path(scratch) / "images")}
        for mode in ("jpg", "raw"):
            path = Path(scratch) / f"{mode}.beton"
            write_beton(sources["folder"], path, mode=mode)
            sources[f".beton, {mode}"] = BetonSource(path)
        found = {name: measure(source, options.threads, options.rounds) for name, source in sources.items()}
    rows = []
    for name, of_source in found.items():
        rows += [
            Row(f"{name}: work for an image", "–", of_source["whole"] * 1e6, unit="µs"),
            Row(f"{name}: of it under the lock, at most", "–", of_source["held"] * 1e6, unit="µs"),
            Row(f"{name}: images/s", "the lock alone allows " + f"{1 / of_source['held']:,.0f}",
                of_source["images/s"], unit="", at_least=TARGETS[name]),
            Row(f"{name}: 1,000 launches", "alone", of_source["stretch"], at_most=1.2),
        ]  # fmt: skip
    report("loader_threads", options, rows, threads=options.threads, found=found)


if __name__ == "__main__":
    main()
