"""Reads colour images with their depth: NYU-Depth-V2, or folders of pairs.

Depth is in whole millimetres, and 0 if it is missing, as cameras write it.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from moco.data.boxes import Size
from moco.data.channels import RGB, PixelFormat
from moco.data.decode import BadImage
from moco.data.folder import FolderPicture, open_picture
from moco.data.listing import entries, says_what_cannot_be_read
from moco.data.source import ArrayPicture, Picture, Source
from moco.errors import InputError

LABELLED = "nyu_depth_v2_labeled.mat"
SPLIT_FILE = "splits.mat"
_INDEX = {"train": "trainNdxs", "val": "testNdxs"}
_COLOUR = re.compile(r"\.color\.(?:jpe?g|png)$", re.IGNORECASE)
_DEPTH = re.compile(r"\.depth\.png$", re.IGNORECASE)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MOST = 65_534  # millimetres that 16 bits hold
_NONE = 65_535  # Kinects write it for missing depth


class DepthSource(Source, Protocol):
    """A source whose images have a depth."""

    def depth(self, index: int) -> np.ndarray:
        """Returns uint16 [H, W] in millimetres, 0 if missing. Raises BadImage."""


class _Unlabelled:
    """Holds the common parts of sources without labels."""

    classes: list[str]
    notes: list[str]

    def __init__(self, count: int) -> None:
        self.labels = np.full(count, -1, dtype=np.int64)
        self.classes = []
        self.notes = []

    def __len__(self) -> int:
        return len(self.labels)


class NyuDepth(_Unlabelled):
    """Reads frames of NYU-Depth-V2's labelled file, one at a time.

    The file is HDF5, as MATLAB v7.3 writes it (Silberman et al., ECCV 2012). h5py shows images uint8 [n, 3, W, H] and
    depths [n, W, H] in metres. index: frames of the split, counted from 0.
    """

    def __init__(self, path: Path, index: np.ndarray) -> None:
        super().__init__(len(index))
        self.path = path
        self.index = index
        images, depths = self._entries
        if images.ndim != 4 or images.shape[1] != 3 or depths.shape != (len(images), *images.shape[2:]):
            raise InputError(
                f"{path} holds images {list(images.shape)} and depths {list(depths.shape)}, not [n, 3, W, H] and"
                " [n, W, H]: download it again"
            )
        if not len(index) or index.min() < 0 or index.max() >= len(images):
            raise InputError(
                f"{path.parent / SPLIT_FILE} names frames {index.min(initial=0) + 1} to {index.max(initial=-1) + 1} of"
                f" {len(images)} in {path.name}: download both again"
            )

    @cached_property
    def _entries(self) -> tuple[Any, Any]:
        file = _hdf5(self.path)
        if not {"images", "depths"} <= file.keys():
            raise InputError(f"{self.path} lacks `images` or `depths`: give NYU-Depth-V2's {LABELLED}")
        return file["images"], file["depths"]

    def name(self, index: int) -> str:
        return f"{self.path}, frame {self.index[index] + 1}"

    def size(self, index: int) -> Size:
        return self._entries[0].shape[3], self._entries[0].shape[2]

    def open(self, index: int) -> Picture:
        return ArrayPicture(self.decode(index))

    def decode(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self._read(0, index).transpose(2, 1, 0))

    def depth(self, index: int) -> np.ndarray:
        metres = np.nan_to_num(self._read(1, index).T.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        return np.rint(1000 * metres).clip(0, _MOST).astype(np.uint16)

    def _read(self, entry: int, index: int) -> np.ndarray:
        try:
            return self._entries[entry][int(self.index[index])]
        except OSError as problem:
            raise BadImage(f"the file is damaged: {problem}") from None


class PairFolder(_Unlabelled):
    """Reads pairs NAME.color.jpg (or .png) and NAME.depth.png from a folder.

    The suffixes may have any case, and .jpeg is read too. The pairs are sorted by name.
    The depth has 16 bits, in millimetres. It is missing at pixels of 0 or 65,535.
    """

    @says_what_cannot_be_read
    def __init__(self, root: Path) -> None:
        files = sorted(entries(root).files)
        colours = [name for name in files if _COLOUR.search(name)]
        if not colours:
            raise InputError(f"there are no pairs NAME.color.jpg and NAME.depth.png in {root}: check the path")
        stems = [_COLOUR.sub("", name) for name in colours]
        named = [(_DEPTH.sub("", name), name) for name in files if _DEPTH.search(name)]
        depths = dict(named)
        alone = [name for name, stem in zip(colours, stems, strict=True) if stem not in depths]
        if alone:
            raise InputError(
                f"{len(alone)} images in {root} have no depth, the first is {alone[0]}: add"
                f" {_COLOUR.sub('', alone[0])}.depth.png, or remove the image"
            )
        for of_kind, kind in ((stems, "images"), ([stem for stem, _ in named], "depths")):
            twice = [stem for stem, times in Counter(of_kind).items() if times > 1]
            if twice:
                raise InputError(f"{root} has several {kind} called {twice[0]}: keep one of them")
        self.pairs = [(root / name, root / depths[stem]) for name, stem in zip(colours, stems, strict=True)]
        super().__init__(len(self.pairs))

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def size(self, index: int) -> Size:
        return self.open(index).size

    def open(self, index: int) -> FolderPicture:
        return open_picture(self.pairs[index][0])

    def decode(self, index: int) -> np.ndarray:
        return self.open(index).decode().array

    def depth(self, index: int) -> np.ndarray:
        path = self.pairs[index][1]
        try:
            with Image.open(path) as image:
                image.load()
                values = np.asarray(image)
                mode = image.mode
        except Exception as problem:  # Pillow raises many kinds for a damaged file
            raise BadImage(f"its depth {path.name}: {problem}") from None
        if not mode.startswith("I") or values.min() < 0 or values.max() > _NONE:
            raise BadImage(f"its depth {path.name} must be a grey PNG of 16 bits, in millimetres")
        return np.where(values == _NONE, 0, values).astype(np.uint16)


def open_depth(data: str | None, split: str, labels_required: bool = False, pixels: PixelFormat = RGB) -> DepthSource:
    """Opens the pairs of 'train' or 'val' (NYU's test frames).

    data: the labelled file, or the folder that holds it; splits.mat is beside the file. It may also be a folder of
    pairs, which is the training split, or a folder with pairs in train/ and in val/. Raises InputError, with the fix,
    if they are missing.
    """
    if data is None:
        raise InputError(f"--dataset nyu-depth needs the folder that holds {LABELLED} and {SPLIT_FILE}")
    if pixels != RGB:
        raise InputError("--dataset nyu-depth has RGB of 8 bits: leave out --channels and --value-range")
    if labels_required:
        raise InputError("--dataset nyu-depth has no classes: measure it with python -m moco.probe.depth")
    if (file := _labelled_file(Path(data))) is not None:
        return NyuDepth(file, _frames(file.parent / SPLIT_FILE, split))
    folder = _pair_folder(Path(data), split)
    if folder is None:
        raise InputError(
            f"there is neither {LABELLED} nor a folder {split} of pairs NAME.color.jpg and NAME.depth.png in {data}"
        )
    return PairFolder(folder)


def has_depth(data: str | None, split: str) -> bool:
    """Returns True if the split exists; a broken one counts too."""
    return data is not None and (_labelled_file(Path(data)) or _pair_folder(Path(data), split)) is not None


def _labelled_file(data: Path) -> Path | None:
    if data.suffix == ".mat":
        return data
    return data / LABELLED if (data / LABELLED).is_file() else None


def _pair_folder(data: Path, split: str) -> Path | None:
    """Returns DATA/split, or None.

    For training it may be DATA itself, if that has neither train/ nor val/.
    """
    if (data / split).is_dir():
        return data / split
    alone = data.is_dir() and not any((data / other).is_dir() for other in _INDEX)
    return data if alone and split == "train" else None


def _hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path} needs h5py, which is not installed; pip install h5py") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if not path.is_file():
            raise InputError(f"there is no file {path}: check the path of the data") from error
        raise InputError(f"{path} is damaged, or no MATLAB file of version 7.3: download it again") from error


def _frames(path: Path, split: str) -> np.ndarray:
    """Reads the frames of a split, counted from 0: int64 [n].

    The file may have either of MATLAB's formats.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}: NYU-Depth-V2's {SPLIT_FILE} says which frames are for training")
    try:
        head = path.read_bytes()[:520]
        if _HDF5 in (head[:8], head[512:]):  # MATLAB puts its own header first
            numbers = _hdf5(path)[_INDEX[split]][()]
        else:
            from scipy.io import loadmat

            numbers = loadmat(str(path))[_INDEX[split]]
        return np.asarray(numbers).ravel().astype(np.int64) - 1
    except InputError:
        raise
    except Exception as error:  # loadmat raises many kinds for a damaged file
        raise InputError(f"{path} does not hold {_INDEX[split]}: download it again") from error
