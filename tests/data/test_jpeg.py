"""JPEGs that OpenCV decodes: the pixels and the errors of Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moco.data import folder, jpeg
from moco.data.decode import BadImage, decode, open_image
from moco.data.folder import FolderPicture, FolderSource, JpegPicture
from moco.data.jpeg import decode_plain, plain_header

pytest.importorskip("cv2")


def picture(mode: str = "RGB", size: tuple[int, int] = (101, 61)) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **how)
    return buffer.getvalue()


def turned(orientation: int, order: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.endian = "<" if order == b"II" else ">"
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "how", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 20}, {"comment": b"by hand"}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_pillow(mode: str, how: dict[str, Any], reduction: int) -> None:
    data = encoded(picture(mode), **how)
    header = plain_header(data)
    assert header == (61, 101)
    found = decode_plain(data, header, reduction)
    assert found is not None
    np.testing.assert_array_equal(found, decode(open_image(data), reduction))


def left_to_pillow() -> dict[str, bytes]:
    plain = encoded(picture())
    two = io.BytesIO()
    picture().save(two, "MPO", save_all=True, append_images=[picture()])
    xmp = b'<x:xmpmeta><tiff:Orientation="6"/></x:xmpmeta>'
    return {
        "turned, Intel": encoded(picture(), exif=turned(6, b"II")),
        "turned, Motorola": encoded(picture(), exif=turned(6, b"MM")),
        "turned by XMP": encoded(picture(), xmp=xmp),
        "CMYK": encoded(picture("CMYK")),
        "two pictures": two.getvalue(),
        "cut off": plain[:-40],
        "cut off, then zeros": plain[:-40] + bytes(200),
        "padded": plain + bytes(200),
        "no pixels": plain[:2] + plain[-2:],
        "header alone": plain[: plain.index(b"\xff\xda")] + b"\xff\xd9",
        "no JPEG": b"GIF89a",
        "empty": b"",
    }


@pytest.mark.parametrize("name", left_to_pillow())
def test_what_opencv_reads_otherwise_is_left_to_pillow(name: str) -> None:
    assert plain_header(left_to_pillow()[name]) is None


def test_a_picture_larger_than_pillow_takes_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 61 * 101 - 1)
    assert plain_header(encoded(picture())) is None


def test_a_folder_takes_opencv_for_them_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.jpg").write_bytes(encoded(picture()))
    (tmp_path / "c" / "b.jpg").write_bytes(left_to_pillow()["turned, Intel"])
    source = FolderSource(tmp_path)
    assert isinstance(source.open(0), JpegPicture) and isinstance(source.open(1), FolderPicture)
    with_opencv = source.decode(0)
    monkeypatch.setattr(folder, "opencv", lambda: None)
    assert isinstance(source.open(0), FolderPicture)
    np.testing.assert_array_equal(with_opencv, source.decode(0))


def test_where_opencv_has_an_error_pillow_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture())
    start = data.index(b"\xff\xc4")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.jpg").write_bytes(data[: start + 5] + b"\xff" * 16 + data[start + 21 :])  # a Huffman table
    source = FolderSource(tmp_path)
    assert isinstance(source.open(0), JpegPicture)
    with pytest.raises(BadImage):
        source.decode(0)
    monkeypatch.setattr(folder, "decode_plain", lambda *_: None)
    (tmp_path / "c" / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(source.decode(0), decode(open_image(data)))


def test_no_other_size_than_the_header_says_is_taken() -> None:
    data = encoded(picture())
    assert decode_plain(data, jpeg.Header(60, 101), 1) is None
