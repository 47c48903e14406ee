"""Defines the interface of a data set.

A sample is opened first, which gives its size at little cost, and then decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from moco.data.boxes import Size
from moco.errors import InputError
from moco.randomness import Purpose, permutation, stream_key

CACHES = ("ram", "os", "none")  # where the pages of a .beton file are kept


class Pixels(NamedTuple):
    """Holds decoded rows of an upright image."""

    array: np.ndarray  # uint8 [h, w, C]
    reduction: int = 1  # the array is at 1/reduction of the stored size
    top: int = 0  # its first row is this row of the image (in rows of the array)


class Picture(Protocol):
    """An opened sample, not yet decoded."""

    @property
    def size(self) -> Size:
        """Returns (height, width) of the upright original, in which boxes are drawn."""

    @property
    def stored(self) -> Size:
        """Returns (height, width) of the result of `decode(1)`.

        It differs from `size` if a .beton holds a smaller copy.
        """

    def decode(self, reduction: int = 1, rows: tuple[int, int] | None = None) -> Pixels:
        """Decodes at 1/`reduction` of the stored size. Raises BadImage.

        It decodes in full if that is no more work. Rows outside `rows` (first, one past the last; in stored pixels) may
        be left out.
        """


class Source(Protocol):
    """A data set: n samples in a fixed order.

    Several threads may call all methods at the same time.
    """

    @property
    def labels(self) -> np.ndarray:
        """Returns int64 [n], -1 for unlabelled samples."""

    @property
    def classes(self) -> list[str]:
        """Returns the names of the labels 0, 1, ...; empty without labels."""

    @property
    def notes(self) -> list[str]:
        """Returns lines for the log: left-out files, the origin of the pixels."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Returns the sample's name for messages, such as its path."""

    def size(self, index: int) -> Size:
        """Reads (height, width) of the upright original, not its pixels. Raises BadImage."""

    def open(self, index: int) -> Picture:
        """Opens a sample. Raises BadImage."""

    def decode(self, index: int) -> np.ndarray:
        """Returns uint8 [H, W, C], the whole sample as stored. Raises BadImage."""


def channels_of(source: Source) -> int:
    """Returns a source's channels; 3 if it has no attribute `channels`."""
    return int(getattr(source, "channels", 3))


class ArrayPicture:
    """Holds pixels that are already in memory."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.size = self.stored = (pixels.shape[0], pixels.shape[1])

    def decode(self, reduction: int = 1, rows: tuple[int, int] | None = None) -> Pixels:
        return Pixels(self.pixels)


class ArraySource:
    """Holds images in memory.

    uint8 [n, H, W, C], or a sequence of [H, W, 3] of any sizes.
    """

    def __init__(
        self, images: np.ndarray | Sequence[np.ndarray], labels: np.ndarray, classes: list[str], title: str
    ) -> None:
        self.images = images
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = classes
        self.title = title
        self.notes: list[str] = []
        self.channels = int(images.shape[-1]) if isinstance(images, np.ndarray) else 3

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def size(self, index: int) -> Size:
        return self.open(index).size

    def open(self, index: int) -> ArrayPicture:
        return ArrayPicture(self.images[index])

    def decode(self, index: int) -> np.ndarray:
        return self.images[index]


def check_same_classes(train: Source, val: Source) -> None:
    """Raises InputError if the classes of two splits or their order differ."""
    if train.classes == val.classes:
        return
    only_train = [c for c in train.classes if c not in set(val.classes)]
    only_val = [c for c in val.classes if c not in set(train.classes)]
    parts = [
        f"only {split} has {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for split, names in (("train", only_train), ("val", only_val))
        if names
    ]
    detail = "; ".join(parts) or "the same names are in another order"
    raise InputError(f"the classes of train and val differ ({detail}): make the class folders of both splits the same")


class Subset:
    """Selects the samples at `index`, in that order.

    index: int64 [n], positions in `source`.
    """

    def __init__(self, source: Source, index: np.ndarray) -> None:
        self.source = source
        self.index = index
        self.labels = source.labels[index]
        self.classes = source.classes
        self.notes = source.notes
        self.channels = channels_of(source)

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        return self.source.name(int(self.index[index]))

    def size(self, index: int) -> Size:
        return self.source.size(int(self.index[index]))

    def open(self, index: int) -> Picture:
        return self.source.open(int(self.index[index]))

    def decode(self, index: int) -> np.ndarray:
        return self.source.decode(int(self.index[index]))


def labelled(source: Source) -> Source:
    """Returns the labelled samples of a source.

    Most of STL-10's training images are unlabelled.
    """
    known = source.labels >= 0
    return source if known.all() else Subset(source, np.flatnonzero(known))


def share_of_classes(source: Source, share: float, seed: int) -> Subset:
    """Takes the same share of each class, rounded to whole images.

    It serves training with few labels. The choice is a function of `seed` and the labels. Raises InputError, naming the
    class, if no image of a class would be left.
    """
    chosen = []
    for label, name in enumerate(source.classes):
        members = np.flatnonzero(source.labels == label)
        count = round(share * len(members))
        if count < 1:
            raise InputError(
                f"--train-fraction {share:g} leaves no image of class {name!r}, which has {len(members)}: take"
                f" {1 / len(members):.2g} or more"
                if len(members)
                else f"class {name!r} has no image to train on"
            )
        chosen.append(members[permutation(stream_key(seed, label, Purpose.LABEL_SHARE), len(members))[:count]])
    return Subset(source, np.sort(np.concatenate(chosen)))


def hold_out(source: Source, share: float, seed: int) -> tuple[Subset, Subset]:
    """Splits a source into (the rest, the held-out part).

    The held-out part is a share of each class, of at least 1 image, and never all of a class. Hyper-parameters are
    chosen on it, so the choice does not depend on the images of the final figure. Raises InputError if a class has
    only 1 image.
    """
    held = np.zeros(len(source), dtype=bool)
    for label, name in enumerate(source.classes):
        members = np.flatnonzero(source.labels == label)
        if len(members) == 1:
            raise InputError(f"class {name!r} has 1 training image, so none can be held out: give it more images")
        count = min(max(1, round(share * len(members))), max(0, len(members) - 1))
        held[members[permutation(stream_key(seed, label, Purpose.HELD_OUT), len(members))[:count]]] = True
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))


def folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns each sample's fold, 0 ... count - 1: int64 [n].

    Every class is spread evenly over the folds, in an order drawn from `seed`. Raises InputError if a class has fewer
    images than there are folds.
    """
    fold = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise InputError(
                f"{count}-fold cross-validation needs {count} training images of every class, and class {label} has"
                f" {len(members)}: pass a smaller --folds, or give it more images"
            )
        fold[members[permutation(stream_key(seed, int(label), Purpose.FOLD), len(members))]] = (
            np.arange(len(members)) % count
        )
    return fold
