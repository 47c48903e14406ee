#!/usr/bin/env python
"""Measures the speed of MoCo v2's augmentations against the usual ways.

    python -m benchmarks.augmentation [--data FOLDER] [--beton FILE ...] [--threads 2] [--rounds 7]

photometric   one view: uint8 crops at 224 px in, normalised floats out. Ours; kornia (batched), where it is installed;
              torchvision v2 and PIL (MoCo's own transforms), both one image at a time.
end to end    two-view float batches from files: our loader and augmentations, from a folder and from .beton files, and
              MoCo's recipe as published (ImageFolder, PIL, its transforms, DataLoader with as many workers as threads).
GPU           the augmentations of two views against a MoCo step of ResNet-50 in bf16, batch 256; with a GPU only.

FOLDER has train/<class>/*. Without it, photograph-like JPEGs of 500 x 375 are made up.
All contestants of a table take turns in one process, round by round.
Printed are the medians over the rounds of the speeds and of the ratios within a round, and the range of the ratios.
Both are given by the clock and by processor time.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

import moco  # noqa: F401  # before torchvision
from moco.data.augment import RECIPES, Augment
from moco.data.datasets import open_split
from moco.data.loader import Loader
from moco.data.sampler import Sampler

SIZE = 224
V2 = RECIPES["v2"]
Contestants = dict[str, Callable[[], int]]  # name -> a function that does a round's work and returns its images


def median_table(title: str, unit: str, contestants: Contestants, rounds: int) -> None:
    """Times all contestants in turns and prints a line for each.

    `rounds` rounds are timed, after one that warms up.
    Speeds are by the clock, and by the processor time of this process and its workers.
    A busy machine disturbs the processor time less.
    """
    clocks: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, work in contestants.items():
            start, used = time.perf_counter(), processor_time()
            count = work()
            speeds = count / (time.perf_counter() - start), count / (processor_time() - used)
            if round_number:
                clocks[name].append(speeds)
    first = next(iter(contestants))
    print(f"\n{title}\n{'':32}{unit + '/s':>12}  first: times as fast   {unit + '/CPU s':>13}  times as fast")
    for name, speeds_of in clocks.items():
        line = f"{name:32}"
        for kind, widths in ((0, (12, 16)), (1, (16, 15))):
            ratios = [ours[kind] / theirs[kind] for ours, theirs in zip(clocks[first], speeds_of, strict=True)]
            median = statistics.median(ratios)
            text = f"{median:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            line += f"{statistics.median(s[kind] for s in speeds_of):{widths[0]}.0f}  {text:{widths[1]}}"
        print(line, flush=True)


def processor_time() -> float:
    """Returns the processor seconds of this process and its ended workers.

    Those of the workers are exact only to 10 ms.
    """
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


# Photographs --------------------------------------------------------------------------------------


def made_up_folder(folder: Path, count: int = 256) -> Path:
    """Writes photograph-like JPEGs into train/ of `folder`; returns `folder`.

    They have 500 x 375 pixels and quality 90, and show clouds of several sizes with a little grain.
    """
    rng = np.random.default_rng(0)
    for i in range(count):
        layers = []
        for cells in (3, 12, 60):
            coarse = Image.fromarray(rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8))
            layers.append(np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=float))
        picture = 0.5 * layers[0] + 0.35 * layers[1] + 0.15 * layers[2] + rng.normal(0, 4, (375, 500, 1))
        place = folder / "train" / str(i % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place / f"{i}.jpg", quality=90)
    return folder


# MoCo's own recipe --------------------------------------------------------------------------------


class PilBlur:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Twice:
    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> list[Tensor]:
        return [self.transform(image), self.transform(image)]


def photometric_transforms() -> list[Any]:
    from torchvision import transforms as T

    return [
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(p=0.2),
        T.RandomApply([PilBlur()], p=0.5),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize(V2.mean, V2.std),
    ]


# Tables -------------------------------------------------------------------------------------------


def photometric(source: Any, threads: int, rounds: int, batch: int = 32) -> None:
    loader = Loader(source, Sampler(len(source), batch, 0), size=SIZE, views=1, workers=threads)
    batches = loader.epoch(0)
    first = next(batches)
    batches.close()
    crops, index = first.crops[:, 0].contiguous(), first.index
    images = [Image.fromarray(crop.numpy()) for crop in crops]
    ours = Augment(V2, 0)
    epochs = iter(range(10**9))

    def run_ours() -> int:
        for _ in range(4):
            ours(crops, index, next(epochs), 0)
        return 4 * batch

    contestants: Contestants = {"this project": run_ours}
    try:
        import kornia.augmentation as K
    except ImportError:
        print("kornia is not installed: left out")
    else:
        stage = K.AugmentationSequential(
            K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5),
            K.RandomHorizontalFlip(p=0.5),
            K.Normalize(torch.tensor(V2.mean), torch.tensor(V2.std)),
        )

        def run_kornia() -> int:
            with torch.no_grad():
                stage(crops.permute(0, 3, 1, 2).contiguous().float().div_(255))
            return batch

        contestants["kornia, batched"] = run_kornia

    from torchvision.transforms import v2

    chain = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(V2.mean), list(V2.std)),
        ]
    )

    def run_torchvision() -> int:
        torch.stack([chain(crop) for crop in crops.permute(0, 3, 1, 2)[:8]])
        return 8

    contestants["torchvision v2, one by one"] = run_torchvision

    from torchvision import transforms as T

    pil = T.Compose(photometric_transforms())
    pool = ThreadPoolExecutor(threads)

    def run_pil() -> int:
        torch.stack(list(pool.map(pil, images)))
        return batch

    contestants[f"PIL (MoCo), {threads} threads"] = run_pil
    median_table(f"Photometric half, {SIZE} px, {threads} threads", "views", contestants, rounds)
    pool.shutdown()


def end_to_end(folder: Path, betons: list[Path], threads: int, rounds: int, batch: int = 32, count: int = 256) -> None:
    from torchvision import datasets, transforms as T

    augment = Augment(V2, 0)

    def ours(path: Path) -> Callable[[], int]:
        source = open_split(str(path))
        loader = Loader(
            source, Sampler(len(source), batch, 0), size=SIZE, scale=V2.scale, ratio=V2.ratio, workers=threads
        )
        epochs = iter(range(10**9))

        def run() -> int:
            epoch = next(epochs)
            done = 0
            batches = loader.epoch(epoch)
            for part in batches:
                for view in range(2):
                    augment(part.crops[:, view], part.index, epoch, view)
                done += len(part.index)
                if done >= count:
                    break
            batches.close()
            return done

        return run

    transform = T.Compose([T.RandomResizedCrop(SIZE, scale=V2.scale), *photometric_transforms()])
    images = datasets.ImageFolder(str(folder / "train"), Twice(transform))

    def run_theirs() -> int:
        # Workers are forked anew each time, in about 50 ms. So all their prefetching is timed, and their processor
        # time is known when they have ended.
        part = torch.utils.data.Subset(images, torch.randperm(len(images))[:count].tolist())
        return sum(len(views[0]) for views, _ in torch.utils.data.DataLoader(part, batch, num_workers=threads))

    contestants: Contestants = {"this project, folder": ours(folder)}
    contestants |= {f"this project, {path.name}": ours(path) for path in betons}
    contestants["MoCo's recipe, DataLoader"] = run_theirs
    title = f"Two-view float batches from files, {SIZE} px, {threads} threads or workers"
    median_table(title, "images", contestants, rounds)


def on_gpu(rounds: int, batch: int = 256) -> None:
    from torchvision.models import resnet50

    crops = torch.randint(0, 256, (batch, 2, SIZE, SIZE, 3), dtype=torch.uint8, device="cuda")
    index = torch.arange(batch, device="cuda")
    query, key = (resnet50(num_classes=128).cuda().to(memory_format=torch.channels_last) for _ in range(2))
    optimiser = torch.optim.SGD(query.parameters(), 0.03, momentum=0.9)
    images = [Augment(V2, 0)(crops[:, view], index, 0, view) for view in range(2)]

    def step() -> int:
        with torch.autocast("cuda", torch.bfloat16):
            q = nn.functional.normalize(query(images[0]), dim=1)
            with torch.no_grad():
                k = nn.functional.normalize(key(images[1]), dim=1)
            loss = -(q * k).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        torch.cuda.synchronize()
        return batch

    def augmentations(augment: Augment) -> Callable[[], int]:
        def run() -> int:
            for view in range(2):
                augment(crops[:, view], index, 0, view)
            torch.cuda.synchronize()
            return batch

        return run

    contestants: Contestants = {
        "augmentations, compiled": augmentations(Augment(V2, 0, compile=True)),
        "augmentations, eager": augmentations(Augment(V2, 0)),
        "MoCo step without them, bf16": step,
    }
    median_table(f"GPU, {torch.cuda.get_device_name()}, batch {batch}", "images", contestants, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/<class>/*; made up if not given")
    parser.add_argument("--beton", type=Path, nargs="*", default=[], help=".beton files of the same images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    here = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=here)
    print(f"commit {commit.stdout.strip()}, {platform.machine()}, torch {torch.__version__}, {options.threads} threads")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or made_up_folder(Path(scratch))
        photometric(open_split(str(folder)), options.threads, options.rounds)
        end_to_end(folder, options.beton, options.threads, options.rounds)
    if torch.cuda.is_available():
        on_gpu(options.rounds)


if __name__ == "__main__":
    main()
