"""Decodes files to upright pixels, and resamples boxes to crops.

These two steps must not differ between sources.

The resampler is torch's antialiased bilinear one on uint8. It is always installed, and releases the interpreter lock.
It equals Pillow's, the one in MoCo's recipe, to 1/255, and is three to four times as fast. FFCV's own
(OpenCV's area average) would make the pixels depend on whether FFCV is installed.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from moco.data.boxes import Box
from moco.data.channels import RGB, BadImage as BadImage, PixelFormat, other_count, to_format
from moco.data.deep_colour import read_deep_colour
from moco.data.heif import ADVICE, can_read, is_heif
from moco.data.jpeg import ends_in_zeros
from moco.data.png import SIGNATURE, without_text

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 to 8 swap height and width
# For a box that is enlarged in both directions, both give the same pixels, and PLAIN is faster.
ANTIALIASED = torch.ops.aten._upsample_bilinear2d_aa.out
PLAIN = torch.ops.aten.upsample_bilinear2d.out
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's other plugins (ICNS, EPS, PCD, ...) may find another size while they load, so they load before the size is
# read.
_SIZE_IN_HEADER = frozenset(["JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF"])
_VALUES = ("F", "I", "I;16", "I;16B", "I;16L", "I;16N")  # modes of more than 8 bits, all of one channel
_BANDS = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4, **dict.fromkeys(_VALUES, 1)}  # other modes become RGB


def open_image(data: bytes) -> Image.Image:
    """Opens the image in `data`. Raises BadImage.

    Its header is read, its pixels are not decoded yet.
    """
    if not data:
        raise BadImage("the file is empty")
    if data.startswith(SIGNATURE):
        data = without_text(data)
    if is_heif(data) and not can_read():
        raise BadImage(ADVICE)
    if ends_in_zeros(data):
        raise BadImage("it was not downloaded in full: its end is filled with zeros; download it again")
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise BadImage("the file is not an image, or of a kind that Pillow does not read") from None
    except Exception as problem:  # a plugin may raise any kind for a damaged file
        raise BadImage(_reason(problem)) from None


def is_image(path: str | Path) -> bool:
    """Returns True if a file holds a picture that can be decoded.

    The name does not count. Pillow recognises some formats that it cannot decode (HDF5, GRIB, EMF, MPEG; EPS without
    Ghostscript). So the header is enough only for its common formats, and images of other formats are decoded.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            if head.startswith(SIGNATURE) or is_heif(head):
                open_image(head + file.read())
                return True
        with Image.open(path) as image:
            if image.format not in _SIZE_IN_HEADER:
                image.load()
            return True
    except Exception:  # any error of Pillow: the file is no image
        return False


def _reason(problem: Exception) -> str:
    """Returns one line about an exception of Pillow.

    Some of these have no message.
    """
    return " ".join(str(problem).split()) or f"Pillow cannot read it ({type(problem).__name__})"


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (height, width) of the pixels of `decode`. Raises BadImage.

    They come from the header, if the header of the format can be trusted.
    """
    try:
        if image.format not in _SIZE_IN_HEADER:
            image.load()
    except Exception as problem:
        raise BadImage(_reason(problem)) from None
    width, height = image.size
    if not (width > 0 and height > 0):
        raise BadImage(f"its header gives it a size of {width}×{height} pixels")
    swapped = _orientation(image) >= 5
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow has swapped them by the tag already
        swapped ^= image.tag_v2.get(_ORIENTATION) in (5, 6, 7, 8)
    return (width, height) if swapped else (height, width)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8.

    It is 1 for a loaded TIFF, because Pillow turns it while loading.
    """
    value = None
    for _ in range(2):  # if the EXIF block is damaged, a second call gives the part before the damage
        with contextlib.suppress(Exception):
            value = image.getexif().get(_ORIENTATION)
            break
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode(image: Image.Image, reduction: int = 1, wanted: PixelFormat = RGB) -> np.ndarray:
    """Decodes to upright uint8 [ceil(H/k), ceil(W/k), C]. Raises BadImage.

    k: `reduction`; the result is at 1/k of the size. C: 1 or 3. libjpeg decodes a JPEG directly at 1/k, from the low
    frequencies only. Other formats are decoded in full and then averaged. For RGB alpha is dropped; palettes, grey and
    CMYK are converted. Values of more than 8 bits are scaled as `wanted` says.
    """
    size = upright_size(image)
    whole = image.size
    try:
        if reduction > 1:
            image.draft(None, (max(1, whole[0] // reduction), max(1, whole[1] // reduction)))
        reduced = image.size != whole
        image.load()
        pixels = _in_bytes(image, wanted)
        if reduction > 1 and not reduced:
            pixels = pixels.reduce(reduction)
        if (turn := _TURNS.get(_orientation(image))) is not None:
            pixels = pixels.transpose(turn)
    except BadImage:
        raise
    except Exception as problem:  # Pillow's plugins raise OSError, ValueError, SyntaxError, EOFError, struct.error, ...
        raise BadImage(_reason(problem)) from None
    _check_size((pixels.height, pixels.width), (-(-size[0] // reduction), -(-size[1] // reduction)))
    found = np.asarray(pixels)
    return found if found.ndim == 3 else found[..., None]


def _check_size(there: tuple[int, int], expected: tuple[int, int]) -> None:
    if there != expected:  # the boxes were drawn in the header's size
        raise BadImage(f"it has {there[0]}×{there[1]} pixels where its header says {expected[0]}×{expected[1]}")


def _in_bytes(image: Image.Image, wanted: PixelFormat) -> Image.Image:
    """Returns the loaded image in mode RGB, or L for one channel."""
    if image.mode in _VALUES:  # convert() would clip these to white
        found = to_format(np.asarray(image)[..., None], wanted)
        return Image.fromarray(found if wanted.channels == 3 else found[..., 0])
    if wanted.channels == 3:
        return image if image.mode == "RGB" else image.convert("RGB")
    if _BANDS.get(image.mode) == 1:
        return image.convert("L")
    raise other_count(_BANDS.get(image.mode, 3), wanted)


def decode_whole(image: Image.Image, wanted: PixelFormat) -> np.ndarray | None:
    """Decodes to upright uint8 [H, W, C], in full. Raises BadImage.

    Returns None for images that `decode` reads: one picture of 1 or 3 channels. The channels are the pages of a
    TIFF file if these are grey and of one size. Otherwise they are those of the picture: grey, grey with alpha,
    RGB, RGB with alpha.
    """
    if wanted.channels in (1, 3) and not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    size = upright_size(image)
    try:
        pages = _grey_pages(image)
        if pages > 1 and wanted.channels not in (3, pages):
            raise BadImage(f"it has {pages} pages of one channel, and --channels is {wanted.channels}")
        if pages > 1 and wanted.channels == pages:
            values = np.stack([_page(image, number) for number in range(pages)], axis=2)
        elif wanted.channels in (1, 3):
            return None
        else:
            values = _bands(image)
    except BadImage:
        raise
    except Exception as problem:  # as in `decode`
        raise BadImage(_reason(problem)) from None
    _check_size(values.shape[:2], size)
    return np.ascontiguousarray(to_format(values, wanted))


def decode_deep(data: bytes, wanted: PixelFormat) -> np.ndarray:
    """Decodes a `deep_colour_file` to upright uint8 [H, W, C]. Raises BadImage.

    For RGB alpha is dropped. Without a range in `wanted`, one range for all three channels keeps the colours.
    """
    image = open_image(data)
    size = upright_size(image)
    try:
        values = read_deep_colour(data, _TURNS.get(_orientation(image)) if image.format == "PNG" else None)
    except Exception as problem:  # as in `decode`
        raise BadImage(_reason(problem)) from None
    _check_size(values.shape[:2], size)
    if wanted.channels == 3:
        values = values[..., : 1 if values.shape[2] == 2 else 3]
        if not wanted.ranges:
            wanted = PixelFormat(3, ((float(values.min()), float(values.max())),))
    return np.ascontiguousarray(to_format(values, wanted))


def _grey_pages(image: Image.Image) -> int:
    """Returns the number of grey pages of a TIFF file.

    All must have one channel, one depth and one size. 1 for all other images.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or _BANDS.get(image.mode) != 1:
        return 1
    first = image.mode, image.size
    try:
        count = image.n_frames
        for number in range(1, count):
            image.seek(number)
            if (image.mode, image.size) != first:
                return 1
        return count
    except Exception:  # damage after the first page
        return 1
    finally:
        image.seek(0)


def _page(image: Image.Image, number: int) -> np.ndarray:
    image.seek(number)
    image.load()
    return np.array(image)


def _bands(image: Image.Image) -> np.ndarray:
    image.load()
    if image.mode not in _BANDS:
        image = image.convert("RGB")
    if (turn := _TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    values = np.asarray(image)
    return values if values.ndim == 3 else values[..., None]


def resample(pixels: np.ndarray, box: Box, out: Tensor) -> None:
    """Resamples `box` of `pixels` into `out`.

    pixels: uint8 [H, W, C]. out: uint8 [S, S, C]. Antialiased bilinear; edges are repeated.
    """
    top, left, h, w = box
    source = torch.from_numpy(pixels)[top : top + h, left : left + w]
    size = [out.shape[0], out.shape[1]]
    bilinear = PLAIN if h <= size[0] and w <= size[1] else ANTIALIASED
    bilinear(source.permute(2, 0, 1)[None], size, False, None, None, out=out.permute(2, 0, 1)[None])
