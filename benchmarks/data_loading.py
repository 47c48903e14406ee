"""Measures the speed at which loaders deliver two crops of each image.

    python -m benchmarks.data_loading                       # made-up JPEGs of 500×375
    python -m benchmarks.data_loading --images /data/train  # photographs: FOLDER/<class>/<image>
    python -m benchmarks.data_loading --memory              # resident memory over 50 epochs, and the loader's formula

This loader is compared with stock FFCV and with PIL in processes. The crops are uint8.
Every contender delivers the same images once per round.
They take turns within a round, so other work on the machine affects all of them equally.
A warm-up round comes first, and includes FFCV's compilation. Printed are the medians.
The ratios are the result, not the absolute numbers. Without FFCV its rows are left out.
For augmented batches see augmentation.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from moco.data.beton.file import BetonSource
from moco.data.beton.writer import write_beton
from moco.data.folder import FolderSource
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import Source
from moco.data.threads import worker_count
from moco.timing import cpu_seconds

Contender = Callable[[int], Iterator[int]]  # round -> images delivered, batch by batch


def made_up_photos(folder: Path, n: int) -> None:
    """Writes n JPEGs of 500×375 with smooth shapes and fine texture.

    Each has about 60 kB, like photographs of that size.
    """
    (folder / "made_up").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, dtype=float) + rng.normal(0, 6, (375, 500, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "made_up" / f"{i:05}.jpg", quality=92)


def ours(source: Source, batch: int, size: int) -> Contender:
    loader = Loader(source, Sampler(len(source), batch, 0), size=size)

    def deliver(turn: int) -> Iterator[int]:
        for step in loader.epoch(turn):
            yield len(step.index)

    return deliver


def stock_ffcv(path: Path, batch: int, size: int, workers: int) -> Contender:
    """Returns stock FFCV with two pipelines over the same field.

    Stock FFCV gives two views in this way. It decodes an image once for each view.
    """
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader as Stock, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec

    def crop() -> RandomResizedCropRGBImageDecoder:
        return RandomResizedCropRGBImageDecoder((size, size), scale=(0.2, 1.0))

    loader = Stock(
        str(path),
        batch_size=batch,
        num_workers=workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": [crop()], "second": PipelineSpec("image", decoder=crop()), "label": None},
    )

    def deliver(turn: int) -> Iterator[int]:
        for first, _ in loader:
            yield len(first)

    return deliver


class TwoViews:
    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> list[Any]:
        return [self.transform(image), self.transform(image)]


def pil_processes(folder: Path, batch: int, size: int, workers: int) -> Contender:
    """Returns the usual pipeline, with PIL in worker processes.

    It consists of ImageFolder, PIL, torchvision's crop and a DataLoader. It decodes each image once.
    """
    from torchvision import datasets, transforms as T

    transform = T.Compose([T.RandomResizedCrop(size, scale=(0.2, 1.0)), T.PILToTensor()])
    data = datasets.ImageFolder(str(folder), TwoViews(transform))
    loader = torch.utils.data.DataLoader(data, batch, shuffle=True, num_workers=workers, drop_last=True)

    def deliver(turn: int) -> Iterator[int]:
        for (first, _), _ in loader:
            yield len(first)

    return deliver


class Result(NamedTuple):
    speed: float  # images/s by the clock
    work: float  # CPU time per image in µs, child processes included


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, list[Result]]:
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, deliver in contenders.items():
            start, work = time.perf_counter(), cpu_seconds()
            images = sum(deliver(turn))
            if turn:  # the first round compiles, fills caches and starts threads
                elapsed = time.perf_counter() - start
                results[name].append(Result(images / elapsed, (cpu_seconds() - work) / images * 1e6))
    return results


def show(results: dict[str, list[Result]], pairs: list[tuple[str, str, str]]) -> None:
    print("\n| two uint8 crops | images/s: median (lowest to highest) | CPU time, µs per image |\n|---|---|---|")
    for name, rounds in results.items():
        speeds = [result.speed for result in rounds]
        work = statistics.median(result.work for result in rounds)
        print(f"| {name} | {statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f}) | {work:.0f} |")
    for mine, theirs, target in pairs:
        if mine in results and theirs in results:
            turns = list(zip(results[mine], results[theirs], strict=True))
            by_clock = statistics.median(a.speed / b.speed for a, b in turns)
            by_work = statistics.median(b.work / a.work for a, b in turns)
            print(f"{mine} / {theirs}: {by_clock:.2f} × by the clock (target {target}), {by_work:.2f} × by CPU time")


def resident() -> float:
    """Returns the resident memory of this process in MiB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def show_memory(sources: dict[str, Source], batch: int, size: int, epochs: int = 50) -> None:
    for name, source in sources.items():
        loader = Loader(source, Sampler(len(source), batch, 0), size=size)
        bound = (loader.prefetch + 2) * batch * loader.views * size**2 * 3 / 2**20
        start, seen = resident(), []
        for epoch in range(epochs):
            for _ in loader.epoch(epoch):
                seen.append(resident() - start)
        tenth = len(seen) // 10
        first, last = statistics.mean(seen[:tenth]), statistics.mean(seen[-tenth:])
        print(
            f"{name}: batches may hold {bound:.0f} MiB; resident memory rose by at most {max(seen):.0f} MiB, "
            f"by {first:.1f} in the first tenth of the steps and {last:.1f} in the last"
        )


def show_start(sources: dict[str, Source], folder: Path, betons: dict[str, Path], batch: int, size: int) -> None:
    for name in sources:
        start = time.perf_counter()
        source = BetonSource(betons[name]) if name in betons else FolderSource(folder)
        loader = Loader(source, Sampler(len(source), batch, 0), size=size)
        ready = time.perf_counter() - start
        batches = loader.epoch(0)
        next(batches)
        print(f"{name}: opened in {ready * 1e3:.0f} ms, first batch after {(time.perf_counter() - start) * 1e3:.0f} ms")
        batches.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="FOLDER/<class>/<image>; default: made-up ones")
    parser.add_argument("--number", type=int, default=1024, help="images per round")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(options, Path(scratch))


def run(options: argparse.Namespace, scratch: Path) -> None:
    folder = scratch / "images"
    if options.images is None:
        made_up_photos(folder, options.number)
    else:  # an even sample of the classes, as links
        everything = FolderSource(options.images)
        for index in np.linspace(0, len(everything) - 1, options.number).astype(int).tolist():
            link = folder / everything.paths[index]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(everything.name(index)).absolute())
    sources: dict[str, Source] = {"folder": FolderSource(folder)}
    betons: dict[str, Path] = {}
    have_ffcv = importlib.util.find_spec("ffcv") is not None
    if have_ffcv:
        for mode in ("jpg", "raw"):
            betons[mode] = scratch / f"{mode}.beton"
            write_beton(sources["folder"], betons[mode], mode=mode)
            sources[mode] = BetonSource(betons[mode])
    workers, batch, size = worker_count(), options.batch, options.size
    torch.set_num_threads(workers)
    print(f"{options.number} images from {options.images or 'made-up JPEGs'}, crops of {size} px, {workers} cores, "
          f"batches of {batch}, {options.rounds} rounds, torch {torch.__version__}")  # fmt: skip
    show_start(sources, folder, betons, batch, size)
    if options.memory:
        show_memory(sources, batch, size)
        return
    contenders = {f"ours, {name}": ours(source, batch, size) for name, source in sources.items()}
    for mode, path in betons.items():
        contenders[f"stock FFCV, {mode}"] = stock_ffcv(path, batch, size, workers)
    contenders["ImageFolder, DataLoader"] = pil_processes(folder, batch, size, workers)
    targets = [("ours, jpg", "stock FFCV, jpg", "2"), ("ours, raw", "stock FFCV, raw", "1.3"),
               ("ours, folder", "ImageFolder, DataLoader", "none")]  # fmt: skip
    show(measure(contenders, options.rounds), targets)


if __name__ == "__main__":
    main()
