"""Reads TIFF files with several channels in a page, with tifffile.

A satellite's bands are an example. Pillow refuses most such files. Of others it gives, without a warning, only the
first channels or the upper eight bits.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, TiffImagePlugin

from moco.data.channels import BadImage

ADVICE = (
    "a TIFF file with several channels in a page needs `pip install tifffile imagecodecs`; or save its channels as"
    " pages, or as a .npy array"
)
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLES = 277  # tags
_BITS = 258
_PHOTOMETRIC = 262
_ORIENTATION = 274
_PLAIN = (0, 1, 2)  # photometric interpretations whose channels are the measured values: grey and RGB


def is_tiff(data: bytes) -> bool:
    return data.startswith(_MAGIC)


def bands_of_page(data: bytes) -> int:
    """Returns the channels of the first page of a TIFF file.

    They are read from its header, so Pillow need not accept the file. 1 if the header is damaged.
    """
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return int(tags.get(_SAMPLES, 1))
    except Exception:  # the error is raised when the file is read
        return 1


def read_bands(data: bytes) -> np.ndarray | None:
    """Reads the first page if Pillow does not give all channels.

    Returns [H, W, C]. None for other files, and for a page of one channel. Raises BadImage, with advice if
    tifffile is missing.
    """
    if _pillow_gives_all(data):
        return None
    try:
        import tifffile
    except ImportError:
        raise BadImage(ADVICE) from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            if page.samplesperpixel < 2 or int(page.photometric) not in _PLAIN:
                return None
            height = page.imagelength
            width = page.imagewidth
            if height * width > 2 * (Image.MAX_IMAGE_PIXELS or height * width):  # as Pillow
                raise BadImage(f"its header gives it a size of {width}×{height} pixels")
            if page.tags.valueof(_ORIENTATION, 1) != 1:
                raise BadImage("its orientation tag turns it, which is not supported: save it upright")
            values = page.asarray()
    except BadImage:
        raise
    except Exception as problem:  # a damaged file raises many kinds
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise BadImage(f"tifffile cannot read it ({reason})") from None
    if values.ndim != 3:
        raise BadImage(f"its first page has the shape {list(values.shape)}, which is not an image")
    return values if values.shape[:2] == (height, width) else np.moveaxis(values, 0, 2)


def _pillow_gives_all(data: bytes) -> bool:
    """Returns True if Pillow reads the file without loss.

    That is: one channel, or all channels of 8 bits.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except Exception:  # unidentified, or damaged: tifffile gives a better message
        return False
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return True
    samples = image.tag_v2.get(_SAMPLES, 1)
    bits = image.tag_v2.get(_BITS, (1,))
    if image.tag_v2.get(_PHOTOMETRIC) not in _PLAIN:
        return True
    return samples == 1 or (samples == len(image.getbands()) and max(bits) <= 8)
