"""Some of the samples of a source, as a source: the labelled ones, a share of every class, a part held out."""

from __future__ import annotations

import numpy as np

from moco.data.boxes import Size
from moco.data.source import Picture, Source
from moco.errors import InputError
from moco.randomness import Purpose, permutation, stream_key


class Subset:
    """The samples at `index` (int64 [n], positions in `source`), in that order."""

    def __init__(self, source: Source, index: np.ndarray) -> None:
        self.source, self.index = source, index
        self.labels, self.classes, self.notes = source.labels[index], source.classes, source.notes

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
    """The labelled samples: STL-10's training images are mostly without a label."""
    known = source.labels >= 0
    return source if known.all() else Subset(source, np.flatnonzero(known))


def share_of_classes(source: Source, share: float, seed: int) -> Subset:
    """The same share of each class, rounded to whole images; which ones is a function of `seed` and the labels.

    For few-label training. InputError, naming the class, if nothing would be left of one.
    """
    chosen = []
    for label, name in enumerate(source.classes):
        members = np.flatnonzero(source.labels == label)
        count = round(share * len(members))
        if count < 1:
            raise InputError(
                f"--train-fraction {share:g} leaves no image of class {name!r}, which has {len(members)}: take"
                f" {1 / len(members):.2g} or more" if len(members) else f"class {name!r} has no image to train on"
            )
        chosen.append(members[permutation(stream_key(seed, label, Purpose.LABEL_SHARE), len(members))[:count]])
    return Subset(source, np.sort(np.concatenate(chosen)))


def hold_out(source: Source, share: float, seed: int) -> tuple[Subset, Subset]:
    """(the rest, the held-out part): a share of each class, of at least 1 image, and never all of a class.

    A choice of hyper-parameters is made on the held-out part, so that it does not see the images of the final figure.
    InputError if a class has 1 image only.
    """
    held = np.zeros(len(source), dtype=bool)
    for label, name in enumerate(source.classes):
        members = np.flatnonzero(source.labels == label)
        if len(members) == 1:
            raise InputError(
                f"class {name!r} has 1 training image, so none can be held out to choose by: give it more images"
            )
        count = min(max(1, round(share * len(members))), max(0, len(members) - 1))
        held[members[permutation(stream_key(seed, label, Purpose.HELD_OUT), len(members))[:count]]] = True
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))


def folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The fold, 0 ... count - 1, of each sample: int64 [n]. Every class is dealt out evenly, in an order of `seed`.

    InputError if a class has fewer images than there are folds.
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
