"""Every kind of image file is decoded rightly or named; the resampler is Pillow's, which is MoCo's."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from moco.data import decode as decoding
from moco.data.decode import BadImage, decode, open_image, resample, upright_size
from tests.data.conftest import Photo


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def decoded(data: bytes, reduction: int = 1) -> np.ndarray:
    return decode(open_image(data), reduction)


def difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG"])
def test_formats(photo: Photo, kind: str) -> None:
    image = photo(1)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    pixels = decoded(encoded(image, kind, **options))
    assert pixels.shape == (80, 96, 3)
    assert pixels.dtype == np.uint8
    assert difference(pixels, image) <= {"JPEG": 3, "GIF": 8}.get(kind, 0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_colour_modes_become_rgb(photo: Photo, mode: str) -> None:
    if mode == "YCbCr" and PIL.__version__.startswith("12.0."):
        pytest.skip("Pillow 12.0 cannot read the YCbCr TIFF that it writes")
    image = photo(2).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    if mode == "HSV":
        image = image.convert("RGB")
    assert difference(decoded(encoded(image, kind)), image.convert("RGB")) <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_modes(photo: Photo, mode: str) -> None:
    """CMYK too at a reduced size, where libjpeg's shortcut must not change the colours."""
    image = photo(3).convert(mode)
    data = encoded(image, "JPEG", quality=95)
    assert difference(decoded(data), image.convert("RGB")) < 4
    assert difference(decoded(data, 2), image.convert("RGB").reduce(2)) < 4


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8: low becomes 0 and high 255."""
    return np.floor((values.astype(float) - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_any_depth_uses_all_levels(bits: int, kind: str) -> None:
    """In a file of 16 bits, as microscopes write 12: all 256 levels of grey, not 16."""
    ramp = np.linspace(0, 2**bits - 1, 64 * 64).astype(np.uint16).reshape(64, 64)
    expected = scaled(ramp, 0, 2**bits - 1)
    pixels = decoded(encoded(Image.fromarray(ramp), kind))
    assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=-1))
    assert len(np.unique(pixels)) == 256
    half = decoded(encoded(Image.fromarray(ramp), kind), 2)
    assert np.abs(half[..., 0].astype(float) - expected.reshape(32, 2, 32, 2).mean((1, 3))).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(-1024, 3071), (0, 2**20 - 1), (-5, 250), (1000, 1255)])
def test_grey_of_32_bits(low: int, high: int) -> None:
    """Computed tomography has negative values; none is clipped. A small range far from 0 keeps its levels."""
    ramp = np.linspace(low, high, 64 * 64).astype(np.int32).reshape(64, 64)
    pixels = decoded(encoded(Image.fromarray(ramp), "TIFF"))[..., 0]
    assert np.array_equal(pixels, scaled(ramp, low, high))
    assert len(np.unique(pixels)) == 256


def test_palette_with_transparency(photo: Photo) -> None:
    image = photo(4).quantize(16)
    data = encoded(image, transparency=bytes(range(0, 256, 16)))
    assert difference(decoded(data), image.convert("RGB")) == 0


TURNS = [
    None,
    *["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"],
]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [1, 2])
def test_exif_rotation(photo: Photo, orientation: int, reduction: int) -> None:
    image = photo(5, width=96, height=64)
    name = TURNS[orientation - 1]
    expected = image.transpose(Image.Transpose[name]) if name else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", quality=95, subsampling=0, exif=exif)
    assert upright_size(open_image(data)) == (expected.height, expected.width)
    assert difference(decoded(data, reduction), expected.reduce(reduction)) < 3


def test_damaged_exif_does_not_lose_the_picture(photo: Photo) -> None:
    data = encoded(photo(6), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decoded(data).shape == (80, 96, 3)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(96, 80), (97, 83), (19, 17)])
def test_reduced_decoding(photo: Photo, reduction: int, kind: str, size: tuple[int, int]) -> None:
    image = photo(7, *size)
    pixels = decoded(encoded(image, kind, **({"quality": 95} if kind == "JPEG" else {})), reduction)
    assert pixels.shape == (-(-size[1] // reduction), -(-size[0] // reduction), 3)
    if min(size) > 19:
        assert difference(pixels, image.reduce(reduction)) < 4


def test_one_pixel(photo: Photo) -> None:
    assert decoded(encoded(photo(8, 1, 1))).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"hello, I am a text file\n" * 50, "not an image"),
        (b"\xff\xd8\xff\xe0 and then nothing of a JPEG", "Truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, None),
    ],
    ids=["empty", "text", "false JPEG", "false PNG"],
)
def test_what_is_no_image_says_so(data: bytes, why: str | None) -> None:
    with pytest.raises(BadImage, match=why):
        decoded(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_a_truncated_file_is_never_a_picture(photo: Photo, kind: str, share: float) -> None:
    data = encoded(photo(9), kind)
    with pytest.raises(BadImage):
        decoded(data[: int(len(data) * share)])


def test_floating_point_pixels_are_named() -> None:
    with pytest.raises(BadImage, match="8 bits"):
        decoded(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


def test_a_decompression_bomb_is_named(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="exceeds limit"):
        decoded(encoded(photo(10)))


@pytest.mark.parametrize("box", [(0, 0, 80, 96), (10, 20, 30, 40), (3, 5, 64, 32), (79, 95, 1, 1), (2, 0, 70, 90)])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_resampling_is_pillows(photo: Photo, box: tuple[int, int, int, int], size: int) -> None:
    """MoCo's transform: crop, then Pillow's bilinear resize with antialiasing."""
    image = photo(11)
    top, left, h, w = box
    expected = image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BILINEAR)
    out = torch.full((3, size, size, 3), 7, dtype=torch.uint8)
    resample(np.asarray(image), box, out[1])
    assert np.abs(out[1].numpy().astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert (out[0] == 7).all()  # the neighbours in the batch are untouched
    assert (out[2] == 7).all()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_box_that_is_enlarged_needs_no_filter(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels, with and without; a box that shrinks one way is filtered."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, channels), dtype=np.uint8)
    used = []
    for name in ("PLAIN", "ANTIALIASED"):
        real = getattr(decoding, name)
        monkeypatch.setattr(decoding, name, lambda *a, real=real, name=name, **k: used.append(name) or real(*a, **k))
    for height, width, expected in [(3, 7, "PLAIN"), (64, 64, "PLAIN"), (40, 64, "PLAIN"), (20, 65, "ANTIALIASED"),
                                    (65, 20, "ANTIALIASED"), (90, 90, "ANTIALIASED")]:  # fmt: skip
        out = torch.empty((64, 64, channels), dtype=torch.uint8)
        resample(pixels, (0, 0, height, width), out)
        assert used.pop() == expected
        filtered = torch.empty_like(out)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "PLAIN", decoding.ANTIALIASED)
            resample(pixels, (0, 0, height, width), filtered)
        used.clear()
        assert (out.int() - filtered.int()).abs().max() <= 1
