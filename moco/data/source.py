"""What the loader asks of a data set: open a sample (its size, cheaply); then, with the boxes drawn, decode it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from moco.data.boxes import Size
from moco.errors import InputError

CACHES = ("ram", "os", "none")  # what becomes of the pages of a .beton file


class Pixels(NamedTuple):
    """Decoded rows of an upright image."""

    array: np.ndarray  # uint8 [h, w, 3]
    reduction: int = 1  # the array is at 1/reduction of the stored size
    top: int = 0  # its first row is this row of the image (in rows of the array)


class Picture(Protocol):
    """One opened sample, not yet decoded."""

    @property
    def size(self) -> Size:
        """(height, width) of the upright original; boxes are drawn in it."""

    @property
    def stored(self) -> Size:
        """(height, width) of what `decode(1)` gives; differs from `size` where a .beton holds a smaller copy."""

    def decode(self, reduction: int = 1, rows: tuple[int, int] | None = None) -> Pixels:
        """Pixels at 1/`reduction` of the stored size, or in full where that is no less work. Raises BadImage.

        Rows outside `rows` (first, one past the last; in stored pixels) may be left out.
        """


class Source(Protocol):
    """A data set: n samples in a fixed order. All methods may be called from several threads at once."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [n], -1 where there is none."""

    @property
    def classes(self) -> list[str]:
        """Names of the labels 0, 1, ...; empty if there are no labels."""

    @property
    def notes(self) -> list[str]:
        """What the log should say about this data set: files that were left out, where the pixels come from."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The sample's name for messages, such as its path."""

    def size(self, index: int) -> Size:
        """(height, width) of the upright original, without reading its pixels. Raises BadImage."""

    def open(self, index: int) -> Picture:
        """Raises BadImage."""

    def decode(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3], the whole sample as stored. Raises BadImage."""


class ArrayPicture:
    """Pixels that are in memory already."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.size = self.stored = (pixels.shape[0], pixels.shape[1])

    def decode(self, reduction: int = 1, rows: tuple[int, int] | None = None) -> Pixels:
        return Pixels(self.pixels)


class ArraySource:
    """Images held in memory: uint8 [n, H, W, 3], or a sequence of [H, W, 3] of any sizes."""

    def __init__(
        self, images: np.ndarray | Sequence[np.ndarray], labels: np.ndarray, classes: list[str], title: str
    ) -> None:
        self.images = images
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = classes
        self.title = title
        self.notes: list[str] = []

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
    """Raises InputError, naming the difference, if two splits do not have the same classes in the same order."""
    if train.classes == val.classes:
        return
    only_train = [c for c in train.classes if c not in set(val.classes)]
    only_val = [c for c in val.classes if c not in set(train.classes)]
    parts = [
        f"only {split} has {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for split, names in (("train", only_train), ("val", only_val))
        if names
    ]
    detail = "; ".join(parts) or "the same names stand in another order"
    raise InputError(f"the classes of train and val differ ({detail}): make the class folders of both splits the same")
