"""Opens data sets by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moco.data.channels import RGB, PixelFormat
from moco.data.depth import has_depth, open_depth
from moco.data.folder import FolderSource
from moco.data.in_memory import IN_MEMORY
from moco.data.layouts import SPLITS, data_root, find_labels, has_archives, no_split
from moco.data.listing import says_what_cannot_be_read
from moco.data.outside import open_outside
from moco.data.source import ArraySource, Source, channels_of
from moco.errors import InputError
from moco.plugins import is_outside

# image size in px, augmentations of moco.data.augment.recipes
DATASET_DEFAULTS: dict[str, tuple[int, str]] = {
    "folder": (224, "v1"),
    "imagenet100": (224, "v1"),
    "digits": (32, "digits"),
    "cifar10": (32, "cifar"),
    "cifar100": (32, "cifar"),
    "stl10": (64, "stl10"),
    "svhn": (32, "cifar"),
    "nyu-depth": (64, "stl10"),
}
DATASETS = tuple(DATASET_DEFAULTS)


def defaults_of(dataset: str) -> tuple[int, str]:
    """Returns the default (image size in px, augmentations) of a data set.

    A data set module:factory has the defaults of photographs.
    """
    return DATASET_DEFAULTS["folder" if is_outside(dataset) else dataset]


LOADERS = ("auto", "ffcv", "folder")
DOWNLOADS = "data"  # default folder for torchvision's data sets; git ignores it


def open_split(
    data: str | None,
    dataset: str = "folder",
    split: str = "train",
    *,
    loader: str = "auto",
    subset: str | None = None,
    labels_required: bool = True,
    cache: str = "os",
    arguments: Sequence[str] = (),
    pixels: PixelFormat = RGB,
) -> Source:
    """Opens the source of one split.

    Raises InputError, with the fix, if it is missing.
    data: a folder with train/ and val/, a .beton file, or a folder with train.beton and val.beton. For torchvision's
    data sets it is their folder, into which they are downloaded if missing.
    dataset: a name of DATASETS, or module:factory from outside, whose --dataset-arg words are `arguments`.
    loader: "ffcv" requires a .beton file, "folder" refuses one. cache: ram, os or none, for .beton files.
    subset: "imagenet100" or a file of class names, one a line, which also gives the order of the labels.
    labels_required: False for pretraining. Then images may be unlabelled, and STL-10 gives train + unlabeled.
    pixels: the format of every image.
    """
    if is_outside(dataset):
        found = open_outside(data, dataset, split, arguments, labels_required, pixels)
        if found is None:
            raise InputError(f"--dataset {dataset} gives None for the split {split}; it must give a data set")
        return _checked(found, dataset, pixels)
    _check_choices(dataset, split, loader)
    if dataset == "nyu-depth" and loader != "ffcv":
        return open_depth(data, split, labels_required, pixels)
    if data is not None and (beton := find_beton(data, split)) is not None:
        if loader == "folder":
            raise InputError(f"--loader folder cannot read {beton}: give the folder of images, or --loader ffcv")
        return _of_beton(beton, cache, labels_required, pixels)
    if loader == "ffcv":
        raise InputError(
            f"--loader ffcv needs a .beton file, and {data or dataset} is not one: "
            "write one with `python -m moco.data.beton write SRC OUT.beton`"
        )
    if dataset in IN_MEMORY:
        return _of_memory(dataset, data, split, labels_required, pixels)
    if data is None:
        raise InputError(f"--dataset {dataset} needs the folder that holds train/ and val/")
    names = IMAGENET100 if dataset == "imagenet100" else subset_classes(subset)
    folder = split_folder(data, split, labels_required)
    listed = says_what_cannot_be_read(find_labels)(folder) if folder.name == split else None
    return FolderSource(folder, subset=names, labels_required=labels_required, listed=listed, pixels=pixels)


def _check_choices(dataset: str, split: str, loader: str) -> None:
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {dataset!r}: choose one of {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: train or val")
    if loader not in LOADERS:
        raise InputError(f"unknown loader {loader!r}: choose one of {', '.join(LOADERS)}")


def _of_beton(file: Path, cache: str, labels_required: bool, pixels: PixelFormat) -> Source:
    if pixels.channels != 3:
        raise InputError(
            f"{file} has 3 channels, as FFCV's image field always has, but --channels is"
            f" {pixels.channels}: give the folder of images"
        )
    return _in_eight_bits(_open_beton(file, cache, labels_required), str(file), pixels)


def _of_memory(dataset: str, data: str | None, split: str, labels_required: bool, pixels: PixelFormat) -> Source:
    source = IN_MEMORY[dataset](data or DOWNLOADS, split, labels_required)
    if dataset == "digits" and pixels.channels == 1:
        source = ArraySource(
            source.images[..., :1],  # type: ignore[call-overload]
            source.labels,
            source.classes,
            source.title,
        )
    return _in_eight_bits(_checked(source, dataset, pixels), f"--dataset {dataset}", pixels)


def _checked(source: Source, dataset: str, pixels: PixelFormat) -> Source:
    there = channels_of(source)
    if there != pixels.channels:
        raise InputError(f"--dataset {dataset} has images of {there} channels: pass --channels {there}")
    return source


def _in_eight_bits(source: Source, name: str, pixels: PixelFormat) -> Source:
    if pixels.ranges:
        source.notes.append(f"--value-range changes nothing: {name} has pixels of 8 bits")
    return source


@says_what_cannot_be_read
def find_beton(data: str, split: str) -> Path | None:
    """Returns the .beton file of a split, or None.

    It is `data` itself for train, NAME.val.beton beside it for val, or train.beton or val.beton in the folder.
    """
    path = Path(data)
    if path.suffix == ".beton":
        return path if split == "train" else path.with_suffix(f".{split}.beton")
    if path.is_dir() and any((path / f"{name}.beton").exists() for name in SPLITS):
        return path / f"{split}.beton"
    return None


@says_what_cannot_be_read
def _open_beton(path: Path, cache: str, labels_required: bool) -> Source:
    from moco.data.beton.file import BetonSource  # FFCV takes seconds to import

    source = BetonSource(path, cache=cache)
    if labels_required and (source.labels < 0).any():
        raise InputError(f"{path} has samples without labels, and labels are needed here: write it from class folders")
    return source


@says_what_cannot_be_read
def split_folder(data: str, split: str, labels_required: bool = True) -> Path:
    """Returns DATA/split, or DATA itself for pretraining on unsorted photos."""
    root = data_root(data)
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: check the path of the data")
    if (root / split).is_dir():
        return root / split
    has_splits = any((root / name).is_dir() for name in SPLITS)
    has_files = any(entry.is_file() and not entry.name.startswith(".") for entry in root.iterdir())
    if split == "train" and not labels_required and has_files and not (has_splits or has_archives(root)):
        return root
    raise no_split(root, split)


@says_what_cannot_be_read
def has_split(data: str | None, dataset: str, split: str, arguments: Sequence[str] = ()) -> bool:
    """Returns True if the split exists; a broken one counts too."""
    if is_outside(dataset):
        return open_outside(data, dataset, split, arguments, labels_required=False) is not None
    if dataset == "nyu-depth":
        return has_depth(data, split)
    if data is not None and (beton := find_beton(data, split)) is not None:
        return beton.exists()
    return dataset in IN_MEMORY or (data is not None and (data_root(data) / split).is_dir())


def subset_classes(subset: str | None) -> Sequence[str] | None:
    """Reads the class names of --subset: imagenet100, or a file of names."""
    if subset is None:
        return None
    if subset == "imagenet100":
        return IMAGENET100
    try:
        names = Path(subset).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"--subset {subset} is neither imagenet100 nor a list of classes: {problem}") from None
    if not names or len(set(names)) != len(names):
        raise InputError(f"--subset {subset} must hold one class name a line, each once")
    return names


_NAMES = """
n02869837 n01749939 n02488291 n02107142 n13037406 n02091831 n04517823 n04589890 n03062245 n01773797 n01735189
n07831146 n07753275 n03085013 n04485082 n02105505 n01983481 n02788148 n03530642 n04435653 n02086910 n02859443
n13040303 n03594734 n02085620 n02099849 n01558993 n04493381 n02109047 n04111531 n02877765 n04429376 n02009229
n01978455 n02106550 n01820546 n01692333 n07714571 n02974003 n02114855 n03785016 n03764736 n03775546 n02087046
n07836838 n04099969 n04592741 n03891251 n02701002 n03379051 n02259212 n07715103 n03947888 n04026417 n02326432
n03637318 n01980166 n02113799 n02086240 n03903868 n02483362 n04127249 n02089973 n03017168 n02093428 n02804414
n02396427 n04418357 n02172182 n01729322 n02113978 n03787032 n02089867 n02119022 n03777754 n04238763 n02231487
n03032252 n02138441 n02104029 n03837869 n03494278 n04136333 n03794056 n03492542 n02018207 n04067472 n03930630
n03584829 n02123045 n04229816 n02100583 n03642806 n04336792 n03259280 n02116738 n02108089 n03424325 n01855672
n02090622
"""

IMAGENET100: list[str] = _NAMES.split()
