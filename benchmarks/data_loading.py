"""How fast two-view batches are delivered: this loader against stock FFCV, MoCo's recipe, and kornia's augmentation.

    python benchmarks/data_loading.py                       # made-up JPEGs of 500×375
    python benchmarks/data_loading.py --images /data/train  # photographs: FOLDER/<class>/<image>
    python benchmarks/data_loading.py --memory              # resident memory over 50 epochs, and the loader's formula

Every contender delivers the same images once per round, in rounds that alternate between all of them (so that what
else the machine does falls on all alike), after a warm-up round that takes FFCV's compilation; printed are the
medians. Ratios are the claim, not the absolute numbers. FFCV and kornia rows are left out where these are not
installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from moco.data.augment import Augment
from moco.data.beton_file import BetonSource
from moco.data.beton_writer import write_beton
from moco.data.crew import worker_count
from moco.data.folder import FolderSource
from moco.data.loader import Batch, Loader
from moco.data.recipes import RECIPES
from moco.data.sampler import Sampler
from moco.data.source import Source

Contender = Callable[[int], Iterator[int]]  # round -> images delivered, batch by batch


def made_up_photos(folder: Path, n: int) -> None:
    """JPEGs of 500×375 with smooth shapes and fine texture: about 60 kB each, as photographs of that size have."""
    (folder / "made_up").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, dtype=float) + rng.normal(0, 9, (375, 500, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "made_up" / f"{i:05}.jpg", quality=92)


def ours(source: Source, batch: int, size: int, photometric: Callable[[Batch, int], Any] | None = None) -> Contender:
    loader = Loader(source, Sampler(len(source), batch, 0), size=size)

    def deliver(turn: int) -> Iterator[int]:
        for step in loader.epoch(turn):
            if photometric is not None:
                photometric(step, turn)
            yield len(step.index)

    return deliver


def our_augmentation() -> Callable[[Batch, int], Any]:
    augment = Augment(RECIPES["v2"], seed=0)
    return lambda step, epoch: [augment(step.crops[:, view], step.index, epoch, view) for view in range(2)]


def kornia_augmentation(size: int) -> Callable[[Batch, int], Any]:
    from kornia import augmentation as K

    steps = K.AugmentationSequential(
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5),
        K.RandomHorizontalFlip(),
        K.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
    return lambda step, _: [steps(step.crops[:, v].permute(0, 3, 1, 2).float().div(255)) for v in range(2)]


def stock_ffcv(path: Path, batch: int, size: int, workers: int) -> Contender:
    """Two pipelines over the same field, which is how stock FFCV gives two views: it decodes once for each."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader as Stock
    from ffcv.loader import OrderOption
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


class PilBlur:
    """Gaussian blur as MoCo applies it, one sigma per image."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class TwoViews:
    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> list[Any]:
        return [self.transform(image), self.transform(image)]


def moco_recipe(folder: Path, batch: int, size: int, workers: int, full: bool) -> Contender:
    """facebookresearch/moco's input pipeline: ImageFolder, PIL transforms, a DataLoader with worker processes."""
    from torchvision import datasets
    from torchvision import transforms as T

    crop = T.RandomResizedCrop(size, scale=(0.2, 1.0))
    photometric = [
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([PilBlur()], p=0.5),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    transform = T.Compose([crop, *photometric]) if full else T.Compose([crop, T.PILToTensor()])
    data = datasets.ImageFolder(str(folder), TwoViews(transform))
    loader = torch.utils.data.DataLoader(data, batch, shuffle=True, num_workers=workers, drop_last=True)

    def deliver(turn: int) -> Iterator[int]:
        for (first, _), _ in loader:
            yield len(first)

    return deliver


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, deliver in contenders.items():
            start = time.perf_counter()
            images = sum(deliver(turn))
            if turn:  # the first round compiles, fills caches and starts threads
                speeds[name].append(images / (time.perf_counter() - start))
    return speeds


def show(title: str, speeds: dict[str, list[float]], pairs: list[tuple[str, str, str]]) -> None:
    print(f"\n| {title} | images/s: median (lowest to highest) |\n|---|---|")
    for name, values in speeds.items():
        print(f"| {name} | {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f}) |")
    for mine, theirs, target in pairs:
        if mine in speeds and theirs in speeds:
            ratios = [a / b for a, b in zip(speeds[mine], speeds[theirs], strict=True)]
            print(f"{mine} / {theirs}: {statistics.median(ratios):.2f} × (target {target})")


def resident() -> float:
    """MiB of this process in memory."""
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
        print(
            f"{name}: batches may hold {bound:.0f} MiB; resident memory rose by at most {max(seen):.0f} MiB; "
            f"mean over the first tenth {statistics.mean(seen[:tenth]):.1f}, over the last {statistics.mean(seen[-tenth:]):.1f}"
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
        batches.close()  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="FOLDER/<class>/<image>; default: made-up ones")
    parser.add_argument("--number", type=int, default=1024, help="images per round")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("crops", "augmented"), help="one of the two tables")
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
    if options.only != "augmented":
        contenders = {f"ours, {name}": ours(source, batch, size) for name, source in sources.items()}
        for mode, path in betons.items():
            contenders[f"stock FFCV, {mode}"] = stock_ffcv(path, batch, size, workers)
        contenders["ImageFolder, PIL, DataLoader"] = moco_recipe(folder, batch, size, workers, full=False)
        pairs = [("ours, jpg", "stock FFCV, jpg", "2"), ("ours, raw", "stock FFCV, raw", "1.3"),
                 ("ours, folder", "ImageFolder, PIL, DataLoader", "none")]  # fmt: skip
        show("two uint8 crops", measure(contenders, options.rounds), pairs)
    if options.only != "crops":
        contenders = {
            f"ours, {name}": ours(source, batch, size, our_augmentation()) for name, source in sources.items()
        }
        contenders["MoCo's own"] = moco_recipe(folder, batch, size, workers, full=True)
        if importlib.util.find_spec("kornia") is not None:
            contenders["our folder, kornia"] = ours(sources["folder"], batch, size, kornia_augmentation(size))
        pairs = [("ours, folder", "MoCo's own", "1.5, stretch 3"), ("ours, folder", "our folder, kornia", "3"),
                 ("ours, raw", "MoCo's own", "none")]  # fmt: skip
        show("two augmented views (MoCo v2)", measure(contenders, options.rounds), pairs)


if __name__ == "__main__":
    main()
