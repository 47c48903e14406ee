"""Reads a folder of images with Pillow: ROOT/<class>/**/<image>.

For pretraining the folder may have images without class folders. Arrays in .npy files are images too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from moco.data.arrays import SUFFIX as ARRAY_SUFFIX, ValuesPicture, is_array, read_array
from moco.data.boxes import Size
from moco.data.channels import RGB, PixelFormat
from moco.data.decode import BadImage, decode, decode_deep, decode_whole, is_image, open_image, upright_size
from moco.data.deep_colour import deep_colour_file
from moco.data.heif import ADVICE, SUFFIXES as HEIF_SUFFIXES, can_read
from moco.data.jpeg import Header, decode_plain, opencv, plain_header
from moco.data.layouts import Labels
from moco.data.listing import around, entries, files_below, leads_back, says_what_cannot_be_read
from moco.data.source import Pixels
from moco.data.tiff import is_tiff, read_bands
from moco.errors import InputError

_SUFFIXES = ".jpg .jpeg .jpe .jfif .png .ppm .pgm .bmp .tif .tiff .webp .gif .jp2 .avif"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())


class FolderSource:
    """Reads the images under `root`, in the order of torchvision's ImageFolder.

    The classes are sorted, and in each class the relative paths. Hidden files are ignored. A file without an image
    suffix is taken if it holds an image. Other files are left out, and a line of `notes` names the first of them.
    Raises InputError if there is nothing to train on.
    pixels: the format into which every image is converted.
    subset: the classes to take, in the order of their labels.
    listed: labels from a file, for images without class folders. Without both, images are unlabelled (-1).
    labels_required: True if unlabelled images are an error.
    """

    @says_what_cannot_be_read
    def __init__(
        self,
        root: str | Path,
        *,
        subset: Sequence[str] | None = None,
        labels_required: bool = True,
        listed: Labels | None = None,
        pixels: PixelFormat = RGB,
    ) -> None:
        self.root = Path(root)
        self.pixels = pixels
        self.channels = pixels.channels
        if not self.root.is_dir():
            raise InputError(f"there is no folder {self.root}: check the path")
        self.notes: list[str] = []
        self._foreign: list[str] = []
        found = entries(self.root)
        circle = around(self.root)
        folders = sorted(name for name in found.folders if not leads_back(self.root / name, circle))
        self._foreign += [f"{name} (a link to a folder that holds it)" for name in found.folders if name not in folders]
        self._foreign += [f"{name} (not a file)" for name in found.others]
        loose = found.files
        if listed is not None:
            self._read_listed(listed, subset)
            folders = []
            loose = []
            subset = None
        if subset is not None:
            _check_subset(self.root, folders, subset)
            folders = list(subset)
        if folders:
            self._read_classes(folders)
            if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in loose) and subset is None:
                raise InputError(
                    f"{self.root} holds class folders and images beside them, such as {loose[0]}: "
                    "move those images into a class folder"
                )
        elif listed is None:
            self._read_unlabelled(loose, labels_required)
        if self._foreign:
            names = ", ".join(self._foreign[:5])
            more = len(self._foreign) - 5
            names += f" and {more} more" if more > 0 else ""
            self.notes.append(f"left out {len(self._foreign)} files that are not images: {names}{self._advice()}")

    def _read_classes(self, folders: list[str]) -> None:
        paths: list[str] = []
        labels: list[int] = []
        empty = []
        for label, folder in enumerate(folders):
            found = [f"{folder}/{name}" for name in self._images(self.root / folder)]
            if not found:
                empty.append(folder)
            paths += found
            labels += [label] * len(found)
        if empty:
            raise InputError(
                f"no image in {len(empty)} of the {len(folders)} classes of {self.root}: {', '.join(empty[:5])}; "
                f"fill or remove these folders{self._advice()}"
            )
        self.paths = paths
        self.labels = np.array(labels, dtype=np.int64)
        self.classes = folders

    def _read_listed(self, listed: Labels, subset: Sequence[str] | None) -> None:
        """Reads labels from a file, and sorts the images by class."""
        files, left_out = files_below(self.root)
        self._foreign += left_out
        classes = sorted(set(listed.classes.values()))
        if subset is not None:
            _check_subset(listed.origin, classes, subset)
            classes = list(subset)
        number = {name: label for label, name in enumerate(classes)}
        labelled = []
        for path in files:
            name = listed.classes.get(os.path.splitext(path)[0])
            if name in number:
                labelled.append((number[name], path))
            elif name is None and self.root / path != listed.origin:
                self._foreign.append(path)
        if not labelled:
            raise InputError(f"{listed.origin} names none of the images in {self.root}: download both again")
        labelled.sort()
        self.paths = [path for _, path in labelled]
        self.classes = classes
        self.labels = np.array([label for label, _ in labelled], dtype=np.int64)
        self.notes.append(f"labels of {self.root} from {listed.origin}")

    def _read_unlabelled(self, loose: list[str], labels_required: bool) -> None:
        paths = [name for name in loose if self._is_image(self.root / name, name)]
        if not paths:
            raise InputError(
                f"there are no images in {self.root}: expected {self.root}/<class>/<image>{self._advice()}"
            )
        if labels_required:
            raise InputError(
                f"{self.root} has images but no class folders, and labels are needed here: "
                f"sort them into {self.root}/<class>/<image>"
            )
        self.paths = paths
        self.labels = np.full(len(paths), -1, dtype=np.int64)
        self.classes = []

    def _advice(self) -> str:
        """Returns "; ..." if another library could read a left-out file."""
        heif = any(os.path.splitext(name)[1].lower() in HEIF_SUFFIXES for name in self._foreign)
        return f"; {ADVICE}" if heif else ""

    def _images(self, folder: Path) -> list[str]:
        files, left_out = files_below(folder)
        self._foreign += [f"{folder.name}/{path}" for path in left_out]
        return [path for path in files if self._is_image(folder / path, f"{folder.name}/{path}")]

    def _is_image(self, path: Path, shown: str) -> bool:
        suffix = os.path.splitext(path)[1].lower()  # runs a million times, and Path would be slow
        if suffix in IMAGE_SUFFIXES or suffix == ARRAY_SUFFIX or (suffix in HEIF_SUFFIXES and can_read()):
            return True
        if is_image(path):
            return True
        self._foreign.append(shown)
        return False

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def size(self, index: int) -> Size:
        try:
            with Image.open(self.root / self.paths[index]) as image:
                return upright_size(image)
        except Exception:  # every plugin raises its own kinds; a full read gives a better message
            return self.open(index).size

    def open(self, index: int) -> FolderPicture | JpegPicture | ValuesPicture:
        data = _read(os.path.join(self.root, self.paths[index]))
        if is_array(data):
            return ValuesPicture(read_array(data, self.pixels), self.pixels)
        bands = read_bands(data) if self.channels != 3 and is_tiff(data) else None
        if bands is not None:
            return ValuesPicture(bands, self.pixels)
        header = plain_header(data) if self.channels == 3 and opencv() is not None else None
        if header is not None:
            return JpegPicture(data, header, self.pixels)
        return FolderPicture(open_image(data), self.pixels)

    def decode(self, index: int) -> np.ndarray:
        return self.open(index).decode().array


class FolderPicture:
    """Holds an encoded image in memory."""

    def __init__(self, image: Image.Image, wanted: PixelFormat = RGB) -> None:
        self.image = image
        self.wanted = wanted
        self.deep = deep_colour_file(image)
        self.size: Size = upright_size(image)

    @property
    def stored(self) -> Size:
        return self.size

    def decode(self, reduction: int = 1, rows: tuple[int, int] | None = None) -> Pixels:
        if self.deep is not None:
            return Pixels(decode_deep(self.deep, self.wanted))
        # Pillow cannot decode only `rows`; libjpeg must entropy-decode all rows above them in any case
        whole = decode_whole(self.image, self.wanted)
        if whole is not None:
            return Pixels(whole)
        return Pixels(decode(self.image, reduction, self.wanted), reduction)


class JpegPicture:
    """Holds an encoded JPEG in memory, which OpenCV decodes.

    Pillow decodes it if OpenCV has an error.
    """

    def __init__(self, data: bytes, header: Header, wanted: PixelFormat) -> None:
        self.data = data
        self.header = header
        self.wanted = wanted
        self.size = self.stored = (header.height, header.width)

    def decode(self, reduction: int = 1, rows: tuple[int, int] | None = None) -> Pixels:
        pixels = decode_plain(self.data, self.header, reduction)
        if pixels is None:
            return FolderPicture(open_image(self.data), self.wanted).decode(reduction)
        return Pixels(pixels, reduction)


def open_picture(path: Path) -> FolderPicture:
    """Opens the RGB image in a file. Raises BadImage."""
    return FolderPicture(open_image(_read(path)))


def _read(path: str | Path) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # Path.read_bytes takes twice as long, with the interpreter's lock
            return file.readall()
    except OSError as problem:
        raise BadImage(problem.strerror or str(problem)) from None


def _check_subset(root: Path, folders: list[str], subset: Sequence[str]) -> None:
    missing = [name for name in subset if name not in set(folders)]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(subset)} classes asked for are not in {root}: {' '.join(missing)}; "
            "download these classes or point at the full data set"
        )
