"""Opens data sets of the Hugging Face hub through `datasets`.

They are named `--dataset hf:NAME[:SPLIT]`. NAME is a data set of the hub, or a local folder of parquet files or
WebDataset tars. `datasets` writes the samples once into its own cache, as Arrow files, from which each sample can be
read by its number. So the order of samples, the crops and a resumed run are as with every other source. No code of a
data set is run.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moco.data.boxes import Size
from moco.data.channels import RGB, PixelFormat
from moco.data.decode import BadImage, open_image
from moco.data.folder import FolderPicture
from moco.errors import InputError

PREFIX = "hf:"
_VALIDATION = ("validation", "val", "valid", "dev", "test")  # the first of these in the data set is the split `val`
_LABELS = ("label", "labels", "cls", "cls.txt", "target", "class", "fine_label")


def is_hub(dataset: str) -> bool:
    return dataset.startswith(PREFIX)


def open_hub(
    dataset: str, split: str, data: str | None = None, words: Sequence[str] = (), pixels: PixelFormat = RGB
) -> HubSource | None:
    """Opens the source of train or val; None without such a split.

    words: image=COLUMN and label=COLUMN, needed if types and names do not identify the columns. Raises InputError if
    the data set, a split named in `dataset`, or a column does not exist.
    """
    columns = check_hub(dataset, data, words)
    splits = _load(dataset)
    _, named = _parts(dataset)
    if split == "train":
        found = named or "train"
        if found not in splits:
            raise InputError(f"--dataset {dataset} has no split {found}, only {', '.join(splits)}: name one of these")
    else:
        there = [name for name in _VALIDATION if name in splits and name != named]
        if not there:
            return None
        found = there[0]
    return HubSource(splits[found], f"{dataset.removeprefix(PREFIX)}/{found}", pixels, **columns)


def check_hub(dataset: str, data: str | None, words: Sequence[str]) -> dict[str, str]:
    """Reads the columns in `words`.

    Raises InputError for other words, for a folder beside the name, and without `datasets`.
    """
    if not _parts(dataset)[0]:
        raise InputError(f"--dataset {dataset} names no data set: hf:NAME or hf:NAME:SPLIT, as in hf:uoft-cs/cifar10")
    if data is not None:
        raise InputError(f"{data} is not read with --dataset {dataset}: leave it out, or pass --dataset hf:{data}")
    columns = {}
    for word in words:
        name, _, column = word.partition("=")
        if name not in ("image", "label") or not column:
            raise InputError(f"--dataset-arg {word}: a data set of the hub takes image=COLUMN and label=COLUMN")
        columns[name] = column
    _library(dataset)
    return columns


class HubSource:
    """Reads one split, its samples in the order of the data set.

    Images stay encoded until they are opened.
    """

    def __init__(
        self, rows: Any, title: str, wanted: PixelFormat = RGB, image: str | None = None, label: str | None = None
    ) -> None:
        self.title = title
        self.wanted = wanted
        self.channels = wanted.channels
        self.notes: list[str] = []
        library = importlib.import_module("datasets")
        column = image or _image_column(rows, library, title)
        _check_column(rows, column, "image", title)
        self.labels, self.classes = _labels(rows, label, title)
        if (self.labels < 0).all():
            self.notes = [f"{title} has no labels; --dataset-arg label=COLUMN names their column"]
        self._column = column
        encoded = rows.select_columns([column])
        if isinstance(rows.features[column], library.Image):
            encoded = encoded.cast_column(column, library.Image(decode=False))
        self._rows = encoded

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def size(self, index: int) -> Size:
        return self.open(index).size

    def open(self, index: int) -> FolderPicture:
        return FolderPicture(open_image(self._bytes(index)), self.wanted)

    def decode(self, index: int) -> np.ndarray:
        return self.open(index).decode().array

    def _bytes(self, index: int) -> bytes:
        try:
            value = self._rows[int(index)][self._column]
            if isinstance(value, dict):  # bytes, or the path of a file beside the data set
                value = value.get("bytes") or Path(value["path"]).read_bytes()
        except Exception as error:  # any error of Arrow or the file system
            raise BadImage(f"{type(error).__name__}: {error}") from error
        if not isinstance(value, bytes):
            raise BadImage(f"must hold an image in {self._column}, not {type(value).__name__}")
        return value


def _parts(dataset: str) -> tuple[str, str | None]:
    """Splits hf:NAME[:SPLIT] into (name, split)."""
    name = dataset.removeprefix(PREFIX)
    before, colon, split = name.rpartition(":")
    if not colon or os.path.isdir(name):
        return name, None
    return before, split or None


def _library(dataset: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(f"--dataset {dataset} needs the library datasets: pip install datasets") from error


@cache
def _load(dataset: str) -> dict[str, Any]:
    """Loads the splits by name.

    Ranks may call it at the same time: `datasets` locks its cache.
    """
    library = _library(dataset)
    name, _ = _parts(dataset)
    library.disable_progress_bars()
    folder = os.path.isdir(name)
    try:
        return dict(library.load_dataset(os.path.abspath(name) if folder else name))
    except Exception as error:  # no network, no such data set, a damaged file: many libraries, many kinds
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = "check its files" if folder else "check the name, or fetch it where there is a network"
        raise InputError(f"--dataset {dataset} cannot be loaded: {why}; {advice}") from error


def _image_column(rows: Any, library: Any, title: str) -> str:
    def holds_bytes(kind: Any) -> bool:  # plain parquet files do not say that they hold images
        value = kind.get("bytes") if isinstance(kind, dict) else kind
        return getattr(value, "dtype", "") in ("binary", "large_binary")

    images = [name for name, kind in rows.features.items() if isinstance(kind, library.Image)]
    images = images or [name for name, kind in rows.features.items() if holds_bytes(kind)]
    if len(images) != 1:
        found = f"{len(images)} columns of images ({', '.join(images)})" if images else "no column of images"
        raise InputError(
            f"{title} has {found} among {', '.join(rows.features)}: name one with --dataset-arg image=COLUMN"
        )
    return images[0]


def _check_column(rows: Any, column: str, what: str, title: str) -> None:
    if column not in rows.features:
        raise InputError(
            f"{title} has no column {column}, only {', '.join(rows.features)}: name one with"
            f" --dataset-arg {what}=COLUMN"
        )


def _labels(rows: Any, column: str | None, title: str) -> tuple[np.ndarray, list[str]]:
    """Reads (labels, classes) from a column of numbers or names.

    Without such a column all labels are -1, and there are no classes.
    """
    if column is None:
        column = next((name for name in _LABELS if name in rows.features), None)
        if column is None:
            return np.full(len(rows), -1, dtype=np.int64), []
    _check_column(rows, column, "label", title)
    values = rows.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    names = getattr(rows.features[column], "names", None)
    if all(isinstance(value, int) for value in values):
        labels = np.array(values, dtype=np.int64)
        classes = list(names or map(str, range(int(labels.max(initial=-1)) + 1)))
        return labels, classes
    if not all(isinstance(value, str) for value in values):
        raise InputError(f"{title}: column {column} holds no numbers or names: pass another --dataset-arg label=COLUMN")
    if all(value.strip().isdigit() for value in values):  # cls.txt of WebDataset
        labels = np.array([int(value) for value in values], dtype=np.int64)
        return labels, list(map(str, range(int(labels.max(initial=-1)) + 1)))
    classes = sorted(set(values))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[value] for value in values], dtype=np.int64), classes
