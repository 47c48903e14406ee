"""Size and pixels agree, and both are upright, whatever a format does with the orientation."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from moco.data.decode import BadImage, decode, open_image, upright_size
from moco.data.folder import FolderSource
from tests.data.conftest import make_photo
from tests.data.test_loader import joined, loader

ORIENTATION, RESOLUTION_UNIT, EXIF_BLOCK = 0x0112, 0x0128, 0x8769
LOSSLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 97, "subsampling": 0}),
    "MPO": ("MPO", {"quality": 97, "subsampling": 0, "save_all": True}),
    "PNG": ("PNG", {}),
    "WEBP": ("WEBP", {"lossless": True}),
    "TIFF": ("TIFF", {}),
    "TIFF, compressed": ("TIFF", {"compression": "tiff_lzw"}),
    "AVIF": ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
}


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The array [H, W, ...] as a camera stores it, so that the tag's definition (the sides on which its row 0 and its
    column 0 are seen) gives `upright`."""
    swap, rows, columns = {
        1: (False, 1, 1),  # top, left
        2: (False, 1, -1),  # top, right
        3: (False, -1, -1),  # bottom, right
        4: (False, -1, 1),  # bottom, left
        5: (True, 1, 1),  # left, top
        6: (True, -1, 1),  # right, top
        7: (True, -1, -1),  # right, bottom
        8: (True, 1, -1),  # left, bottom
    }[orientation]
    turned = np.swapaxes(upright, 0, 1) if swap else upright
    return turned[::rows, ::columns]


def packed(kind: str, upright: np.ndarray, orientation: int, **more: Any) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(stored(upright, orientation)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    name, options = LOSSLESS[kind]
    if name == "MPO":
        options = options | {"append_images": [image]}
    image.save(file, name, exif=exif, **options, **more)
    return file.getvalue()


def check(path: Path, data: bytes, upright: np.ndarray, most: float) -> None:
    path.write_bytes(data)
    source = FolderSource(path.parent, labels_required=False)
    assert source.size(0) == upright.shape[:2]
    assert upright_size(open_image(data)) == upright.shape[:2]
    assert source.open(0).size == upright.shape[:2]
    for k in (1, 2, 4):
        pixels = decode(open_image(data), k)
        expected = np.asarray(Image.fromarray(upright).reduce(k), dtype=float)
        assert pixels.shape == expected.shape
        assert np.abs(pixels - expected).mean() <= most * (1 + (k > 1))
    assert joined(loader(source, size=16).epoch(0)).crops.shape == (1, 2, 16, 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_format_is_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    upright = np.asarray(make_photo(5, width=300, height=100))
    assert (orientation > 1) == (stored(upright, orientation).tobytes() != upright.tobytes())
    most = {"JPEG": 2, "MPO": 2, "AVIF": 2}.get(kind, 0)
    check(tmp_path / f"x.{kind[:4].lower()}", packed(kind, upright, orientation), upright, most)


def test_the_reference_is_right() -> None:
    """Orientation 6, which phones write: turned by 90° clockwise when shown."""
    upright = np.arange(6).reshape(2, 3)
    assert np.rot90(stored(upright, 6), -1).tolist() == upright.tolist()
    assert np.rot90(stored(upright, 8), 1).tolist() == upright.tolist()
    assert stored(upright, 5).T.tolist() == upright.tolist()


@pytest.mark.parametrize("orientation", [2, 6, 8])
def test_grey_of_16_bits_is_upright_at_a_fraction(tmp_path: Path, orientation: int) -> None:
    grey = np.asarray(make_photo(3, 300, 100).convert("L")).astype(np.uint16) * 257
    grey[0, 0], grey[0, 1] = 0, 65535  # the whole range, so that no value is moved
    pixels = decode(open_image(packed("PNG", grey, orientation)), 4)
    expected = np.asarray(Image.fromarray((grey >> 8).astype(np.uint8)).reduce(4))
    assert pixels.shape == (25, 75, 3)
    assert np.abs(pixels[..., 0].astype(float) - expected).max() <= 1


def exif_block(entries: list[tuple[int, int, int, bytes]]) -> bytes:
    """Of entries (tag, type, count, value of 4 bytes)."""
    table = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4)


TURNED = (ORIENTATION, 3, 1, struct.pack("<H", 6))
DAMAGES = {
    "a number as text": [TURNED, (RESOLUTION_UNIT, 2, 2, b"2\0")],
    "a block that lies outside": [TURNED, (EXIF_BLOCK, 4, 1, b"\xff\xff\xff\x7f")],
    "a value that lies outside": [TURNED, (0x011A, 5, 1, b"\xf0\xff\0\0")],
    "an unknown type": [TURNED, (RESOLUTION_UNIT, 77, 9, b"zzzz")],
    "a count of millions": [TURNED, (0x010F, 2, 1 << 30, b"abcd")],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tags_beside_a_good_orientation(tmp_path: Path, kind: str, damage: str) -> None:
    upright = np.asarray(make_photo(5, width=300, height=100))
    image = Image.fromarray(np.ascontiguousarray(stored(upright, 6)))
    file = io.BytesIO()
    image.save(file, kind, exif=b"Exif\0\0" + exif_block(DAMAGES[damage]), **LOSSLESS[kind][1])
    check(tmp_path / f"x.{kind.lower()}", file.getvalue(), upright, 2 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", [(RESOLUTION_UNIT, 2, 2, b"2\0"), (EXIF_BLOCK, 4, 1, b"\xff\xff\xff\x7f")])
def test_damaged_tags_of_a_tiff(tmp_path: Path, damage: tuple[int, int, int, bytes]) -> None:
    upright = np.asarray(make_photo(5, width=30, height=10))
    pixels = np.ascontiguousarray(stored(upright, 6))
    height, width, _ = pixels.shape
    entries = [(0x0100, 3, 1, width), (0x0101, 3, 1, height), (0x0102, 3, 1, 8), (0x0106, 3, 1, 2), (0x0115, 3, 1, 3)]
    entries += [(0x0116, 3, 1, height), (0x0117, 4, 1, pixels.nbytes)]
    table = [(tag, kind, count, struct.pack("<L", value)) for tag, kind, count, value in entries]
    table += [(0x0111, 4, 1, struct.pack("<L", 8 + 2 + 12 * 10 + 4)), TURNED, damage]
    data = exif_block(sorted(table)) + pixels.tobytes()
    check(tmp_path / "x.tif", data, upright, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_orientation_in_xmp_alone(tmp_path: Path, kind: str) -> None:
    upright = np.asarray(make_photo(5, width=300, height=100))
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.fromarray(np.ascontiguousarray(stored(upright, 6)))
    file = io.BytesIO()
    if kind == "TIFF":
        image.save(file, kind, tiffinfo={700: xmp})
    else:
        from PIL.PngImagePlugin import PngInfo

        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(file, kind, pnginfo=text)
    check(tmp_path / f"x.{kind.lower()}", file.getvalue(), upright, 0)


class Late(ImageFile.ImageFile):
    """A plugin that finds another size while it loads, as Pillow's do for EPS, ICNS and PCD."""

    format, format_description = "LATE", "late"

    def _open(self) -> None:
        self._size, self._mode = (48, 48), "RGB"

    def load(self) -> Any:
        picture = make_photo(2, 20, 30)
        self.im, self._size = picture.im, picture.size
        return self.im.pixel_access(self.readonly)


def test_a_format_that_finds_its_size_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.setitem(Image.OPEN, "LATE", (Late, lambda prefix: prefix.startswith(b"LATE")))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "LATE"])
    image = open_image(b"LATE" + bytes(20))
    assert upright_size(image) == (30, 20)
    assert np.array_equal(decode(image), np.asarray(make_photo(2, 20, 30)))


def test_a_header_that_is_wrong_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the boxes of one size would cut pixels of another, in silence."""
    Image.init()
    monkeypatch.setattr(Late, "format", "PNG")
    monkeypatch.setitem(Image.OPEN, "LATE", (Late, lambda prefix: prefix.startswith(b"LATE")))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "LATE"])
    with pytest.raises(BadImage, match="30×20 pixels where its header says 48×48"):
        decode(open_image(b"LATE" + bytes(20)))
