"""Opens data sets from outside: a factory's source or torch dataset."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from moco import plugins
from moco.data.channels import RGB, PixelFormat
from moco.data.decode import BadImage, decode, decode_whole
from moco.data.hub import is_hub, open_hub
from moco.data.source import ArrayPicture, ArraySource, Source
from moco.errors import InputError


def open_outside(
    data: str | None,
    dataset: str,
    split: str,
    arguments: Sequence[str],
    labels_required: bool,
    pixels: PixelFormat = RGB,
) -> Source | None:
    """Opens a split of a factory or the hub; None without it.

    It calls module:name as `factory(split, data, **arguments)`. The factory returns a Source, or a torch dataset with
    `len` and `[i]`, or None. Raises InputError for anything else.
    """
    hub = is_hub(dataset)
    made = open_hub(dataset, split, data, arguments, pixels) if hub else _make(dataset, split, data, tuple(arguments))
    if made is None:
        return None
    if not (hasattr(made, "__len__") and (hasattr(made, "open") or hasattr(made, "__getitem__"))):
        raise InputError(
            f"--dataset {dataset} gives a {type(made).__name__} for {split}; it must give a moco.data.source.Source, a"
            " torch dataset with len and [i], or None"
        )
    source = made if hasattr(made, "open") else MapStyleSource(made, f"{dataset}/{split}", pixels)
    if not len(source):
        raise InputError(f"--dataset {dataset} gives no image for {split}")
    if labels_required and (np.asarray(source.labels) < 0).any():
        raise InputError(
            f"--dataset {dataset} has images without a label in {split}, and labels are needed here: "
            + (
                "name their column with --dataset-arg label=COLUMN"
                if hub
                else "give the data set an attribute `targets` with the label of each image"
            )
        )
    return source


@functools.cache
def _make(dataset: str, split: str, data: str | None, arguments: tuple[str, ...]) -> Any:
    """Calls the factory once, and keeps its result.

    A run asks whether a split exists, opens it, and asks again at its end.
    """
    return plugins.find("--dataset", dataset, arguments, split, data)()


class MapStyleSource(ArraySource):
    """Reads a torch dataset.

    Its `[i]` is an image, or a tuple that begins with one. The image is a Pillow image or uint8 [H, W, C] or [H, W].
    The labels are its attribute `targets` or `labels`, the names of the classes its attribute `classes`. Without the
    attributes the images are unlabelled, because reading all of them would take an epoch.
    """

    def __init__(self, dataset: Any, title: str, wanted: PixelFormat = RGB) -> None:
        labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
        found = np.full(len(dataset), -1) if labels is None else np.asarray(labels, dtype=np.int64)
        if found.shape != (len(dataset),):
            raise InputError(f"{title} has {len(dataset)} images and labels of shape {list(found.shape)}")
        names = getattr(dataset, "classes", None) or range(int(found.max(initial=-1)) + 1)
        super().__init__(dataset, found, [str(name) for name in names], title)
        self.wanted = wanted
        self.channels = wanted.channels
        if labels is None:
            self.notes = [f"{title} has no attribute targets or labels: images without labels"]

    def open(self, index: int) -> ArrayPicture:
        return ArrayPicture(self.decode(index))

    def decode(self, index: int) -> np.ndarray:
        try:
            sample = self.images[index]
        except Exception as error:  # any error of the data set's own code
            raise BadImage(f"{self.name(index)}: {type(error).__name__}: {error}") from error
        image = sample[0] if isinstance(sample, (tuple, list)) else sample
        if isinstance(image, Image.Image):
            whole = decode_whole(image, self.wanted)
            return decode(image, wanted=self.wanted) if whole is None else whole
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3 if self.channels == 3 else 1, axis=-1)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != self.channels:
            raise InputError(
                f"{self.name(index)} is {pixels.dtype} {list(pixels.shape)}; an image must be a Pillow image or uint8"
                f" [H, W, {self.channels}], without a transform to tensors (--channels is {self.channels})"
            )
        return np.ascontiguousarray(pixels)
