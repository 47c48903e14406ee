"""Loads data sets that fit in memory.

These are digits, and torchvision's CIFAR, STL-10 and SVHN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from moco import distributed
from moco.data.source import ArraySource
from moco.errors import InputError
from moco.randomness import Purpose, permutation, stream_key


def _digits(data: str, split: str, labels_required: bool) -> ArraySource:
    """Loads scikit-learn's 1,797 scans of digits.

    They have 8×8 px, and are enlarged to 32×32 RGB. A fixed fifth of each class is `val`.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    labels = scans.target.astype(np.int64)
    chosen = []
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        members = members[permutation(stream_key(0, digit, Purpose.ORDER), len(members))]
        cut = len(members) // 5
        chosen.append(members[:cut] if split == "val" else members[cut:])
    index = np.sort(np.concatenate(chosen))
    grey = (scans.images[index] * (255 / 16)).round().astype(np.uint8)
    large = [np.asarray(Image.fromarray(scan).resize((32, 32), Image.Resampling.BILINEAR)) for scan in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    return ArraySource(images, labels[index], [str(digit) for digit in range(10)], f"digits/{split}")


def _cifar(name: str) -> Callable[[str, str, bool], ArraySource]:
    def load(data: str, split: str, labels_required: bool) -> ArraySource:
        from torchvision import datasets

        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        found = _download(name, data, lambda download: kind(data, train=split == "train", download=download))
        return ArraySource(found.data, np.array(found.targets), list(found.classes), f"{name}/{split}")

    return load


def _stl10(data: str, split: str, labels_required: bool) -> ArraySource:
    from torchvision import datasets

    part = "test" if split == "val" else "train" if labels_required else "train+unlabeled"
    found = _download("stl10", data, lambda download: datasets.STL10(data, split=part, download=download))
    images = np.ascontiguousarray(found.data.transpose(0, 2, 3, 1))
    return ArraySource(images, found.labels, list(found.classes), f"stl10/{part}")


def _svhn(data: str, split: str, labels_required: bool) -> ArraySource:
    from torchvision import datasets

    part = "test" if split == "val" else "train"
    found = _download("svhn", data, lambda download: datasets.SVHN(data, split=part, download=download))
    images = np.ascontiguousarray(found.data.transpose(0, 2, 3, 1))
    return ArraySource(images, found.labels, [str(digit) for digit in range(10)], f"svhn/{part}")


def _download(name: str, data: str, load: Callable[[bool], object]):  # type: ignore[no-untyped-def]  # torchvision's
    """Loads a data set on every rank, after rank 0's download.

    Rank 0 downloads only missing files. All ranks raise InputError if that fails.
    """
    problem: str | None = None
    found = None
    if distributed.rank() == 0:
        try:
            found = load(True)
        except Exception as error:  # no network, no space, a broken archive: torchvision raises many kinds
            problem = f"{name} could not be loaded from or downloaded to {data}: {error}"
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise InputError(problem)
    return found if found is not None else load(False)


IN_MEMORY: dict[str, Callable[[str, str, bool], ArraySource]] = {
    "digits": _digits,
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
    "stl10": _stl10,
    "svhn": _svhn,
}
