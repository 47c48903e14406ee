"""Finds images and labels in data sets as they are downloaded.

It recognises Tiny-ImageNet, and ImageNet from Kaggle or from the official archives. Their validation images are in one
folder, with the labels in a file. Other layouts are refused, with the commands that correct them.
"""

from __future__ import annotations

import csv
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from moco.data.listing import entries
from moco.errors import InputError

SPLITS = ("train", "val")
_KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_DEVKIT = "ILSVRC2012_devkit_t12/data"
_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
_UNPACK = 'for f in *.tar; do mkdir "${f%.tar}" && tar -xf "$f" -C "${f%.tar}" && rm "$f"; done'


class Labels(NamedTuple):
    """Holds labels of a split without class folders."""

    origin: Path  # the file they were read from
    classes: dict[str, str]  # file relative to the split's folder, without its suffix -> class


def data_root(data: str | Path) -> Path:
    """Returns the folder that holds train/ and val/.

    It is `data`, or the folder below it in which Kaggle's ImageNet has them.
    """
    root = Path(data)
    if not any((root / split).is_dir() for split in SPLITS):
        for inner in _KAGGLE:
            if (root / inner / "train").is_dir():
                return root / inner
    return root


def has_archives(root: Path) -> bool:
    """Returns True if `root` holds ImageNet's official archives, not yet unpacked."""
    return any((root / name).is_file() for name in _ARCHIVES.values())


def no_split(root: Path, split: str) -> InputError:
    """Returns the error for a folder without the folder `split`.

    It names the fix if the layout is a known one.
    """
    missing = f"there is no {root / split}"
    archives = [name for name in _ARCHIVES.values() if (root / name).is_file()]
    if archives:
        unpack = " && ".join(
            f"mkdir {part} && tar -xf {name} -C {part}" for part, name in _ARCHIVES.items() if name in archives
        )
        return InputError(f"{missing}, only archives: run `cd {quote(str(root))} && {unpack}`, then start again")
    found = entries(root)
    if root.name in SPLITS and found.folders:
        return InputError(f"{missing}: {root} is the folder of one split; give the folder that holds it, {root.parent}")
    inner = [name for name in found.folders if (root / name / split).is_dir()]
    if len(inner) == 1:
        return InputError(f"{missing}, but there is {root / inner[0] / split}: give {root / inner[0]}")
    if found.folders and not any((root / name).is_dir() for name in SPLITS):
        new = quote(f"{root}.data")
        classes = quote(str(root.absolute()))
        return InputError(
            f"{missing}: expected {root}/{split}/<class>/<image>. If the folders in {root} are the classes, run "
            f"`mkdir {new} && ln -s {classes} {new}/{split}` and give {root}.data"
        )
    return InputError(f"{missing}: expected {root}/{split}/<class>/<image>")


def find_labels(folder: Path) -> Labels | None:
    """Reads labels from the file that comes with a known data set.

    None if `folder` has class folders, or if the data set is not known. Raises InputError, with the commands, for
    ImageNet's archives that are not yet unpacked, and for ImageNet's validation images without their labels.
    """
    found = entries(folder)
    if not found.folders and (tars := [name for name in found.files if name.endswith(".tar")]):
        raise InputError(
            f"{folder} holds {len(tars)} archives, one for each class: run `cd {quote(str(folder))} && {_UNPACK}`, "
            "then start again"
        )
    if found.folders == ["images"] and "val_annotations.txt" in found.files:
        return _tiny_imagenet(folder / "val_annotations.txt")
    if found.folders or not any(name.startswith("ILSVRC2012_val_") for name in found.files):
        return None
    for place in (folder, *folder.resolve().parents[:5]):
        if (place / "LOC_val_solution.csv").is_file():
            return _kaggle(place / "LOC_val_solution.csv")
        if (place / _DEVKIT).is_dir():
            return _devkit(place / _DEVKIT)
    raise InputError(
        f"{folder} holds ImageNet's validation images without class folders: put Kaggle's LOC_val_solution.csv, or the "
        f"official ILSVRC2012_devkit_t12, which have their labels, into {folder.parent}"
    )


def _tiny_imagenet(path: Path) -> Labels:
    """Reads lines of file, class and four numbers, separated by tabs."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return Labels(path, {f"images/{Path(row[0]).stem}": row[1].strip() for row in rows})
    except (IndexError, UnicodeDecodeError):
        raise _damaged(path) from None


def _kaggle(path: Path) -> Labels:
    """Reads the columns ImageId and PredictionString, which begins with the class."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return Labels(path, {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)})
    except (KeyError, IndexError, AttributeError, UnicodeDecodeError, csv.Error):
        raise _damaged(path) from None


def _devkit(folder: Path) -> Labels:
    """Reads one number a line, in the order of the images.

    meta.mat has the class of each number.
    """
    from scipy.io import loadmat

    path = folder / "ILSVRC2012_validation_ground_truth.txt"
    try:
        synsets = loadmat(str(folder / "meta.mat"), squeeze_me=True)["synsets"]
        names = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        numbers = [int(word) for word in path.read_text(encoding="utf-8").split()]
        return Labels(path, {f"ILSVRC2012_val_{i:08d}": names[number] for i, number in enumerate(numbers, 1)})
    except OSError:
        raise
    except Exception:  # loadmat raises many kinds for a damaged file
        raise _damaged(path) from None


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged, or not the list of labels that this data set comes with: download it again")
