"""Colour of 16 bits in PNG and TIFF files: every value of the file, scaled by one range for the picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco.data.channels import BadImage, PixelFormat
from moco.data.deep_colour import deep_colour_file, read_deep_colour
from moco.data.folder import FolderSource
from moco.encoders.preprocessing import Preprocessing


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values: np.ndarray, orientation: int = 1) -> bytes:
    """A PNG of uint16 [H, W, C], its rows by turns unfiltered and as differences to the row above."""
    height, width, channels = values.shape
    stored = values.astype(">u2").view(np.uint8).reshape(height, -1)
    above = np.concatenate([np.zeros_like(stored[:1]), stored[:-1]])
    rows = [bytes([0]) + row.tobytes() if y % 2 else bytes([2]) + (row - up).tobytes()
            for y, (row, up) in enumerate(zip(stored, above, strict=True))]  # fmt: skip
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) if orientation != 1 else b""
    data = zlib.compress(b"".join(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + turned + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, order: str = "<", compressed: bool = False) -> bytes:
    """A TIFF of one strip of uint16 [H, W, C]; the fourth channel is alpha."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compressed else data
    tags = [(256, 3, width), (257, 3, height), (258, 3, None), (259, 3, 8 if compressed else 1), (262, 3, 2),
            (273, 4, None), (277, 3, channels), (278, 3, height), (279, 4, len(data))]  # fmt: skip
    tags += [(338, 3, 2)] if channels == 4 else []
    bits = 8 + 2 + 12 * len(tags) + 4
    place = {258: bits, 273: bits + 2 * channels}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, kind, value in tags:
        count = channels if tag == 258 else 1
        value = place.get(tag, value)
        short = kind == 3 and count == 1
        head += struct.pack(f"{order}HHI", tag, kind, count) + struct.pack(
            f"{order}HH" if short else f"{order}I", *((value, 0) if short else (value,))
        )
    return head + struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels) + data


FILES: dict[str, Callable[[np.ndarray], bytes]] = {
    "png": png,
    "tiff": tiff,
    "tiff, other order": lambda values: tiff(values, ">"),
    "tiff, compressed": lambda values: tiff(values, compressed=True),
    "tiff, compressed, other order": lambda values: tiff(values, ">", True),
}


def made_up(channels: int, most: int = 65536) -> np.ndarray:
    return np.random.default_rng(3).integers(0, most, (9, 7, channels)).astype(np.uint16)


def decoded(tmp_path: Path, data: bytes, wanted: PixelFormat) -> np.ndarray:
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / "x.png").write_bytes(data)
    return FolderSource(tmp_path, pixels=wanted).decode(0)


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.floor((values.astype(float).clip(low, high) - low) * 255 / (high - low) + 0.5).astype(np.uint8)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("channels", [3, 4])
def test_every_value_is_read(kind: str, channels: int) -> None:
    values = made_up(channels)
    data = FILES[kind](values)
    assert deep_colour_file(Image.open(io.BytesIO(data))) == data
    assert np.array_equal(read_deep_colour(data, None), values)


def test_grey_with_alpha_is_read_whole(tmp_path: Path) -> None:
    values = made_up(2)
    assert np.array_equal(read_deep_colour(png(values), None), values)
    grey, alpha = (levels(values[..., c], *ends(values[..., c])) for c in (0, 1))
    assert np.array_equal(decoded(tmp_path, png(values), PixelFormat(2)), np.stack([grey, alpha], axis=2))
    assert np.array_equal(decoded(tmp_path, png(values), PixelFormat(3)), np.stack([grey] * 3, axis=2))


def ends(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("alpha", [False, True])
def test_twelve_bits_keep_their_levels_and_colours(kind: str, alpha: bool, tmp_path: Path) -> None:
    """One range for the picture: a channel that is darker than the others stays so. Alpha has no say."""
    values = made_up(3, 4096) // np.array([1, 2, 8], np.uint16)
    stored = np.concatenate([values, np.full_like(values[..., :1], 65535)], axis=2) if alpha else values
    found = decoded(tmp_path, FILES[kind](stored), PixelFormat())
    assert np.array_equal(found, levels(values, *ends(values)))
    assert found[..., 2].max() < 33 and len(np.unique(found)) > 40
    highs = (1000, 2000, 500)
    ranged = decoded(tmp_path, FILES[kind](stored), PixelFormat(3, tuple((0, high) for high in highs)))
    assert np.array_equal(ranged, np.stack([levels(values[..., c], 0, high) for c, high in enumerate(highs)], axis=2))


def test_four_channels_have_ranges_of_their_own(tmp_path: Path) -> None:
    values = made_up(4)
    found = decoded(tmp_path, png(values), PixelFormat(4))
    assert np.array_equal(found, np.stack([levels(values[..., c], *ends(values[..., c])) for c in range(4)], axis=2))
    with pytest.raises(BadImage, match="it has 3 channels, and --channels is 4"):
        decoded(tmp_path, png(values[..., :3]), PixelFormat(4))
    with pytest.raises(BadImage, match="it has 3 channels, and --channels is 1"):
        decoded(tmp_path, png(values[..., :3]), PixelFormat(1))


@pytest.mark.parametrize("orientation", [3, 6])
def test_it_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    values = made_up(3)
    upright = np.rot90(values, {3: 2, 6: 3}[orientation])
    found = decoded(tmp_path, png(values, orientation), PixelFormat())
    assert np.array_equal(found, levels(upright, *ends(values)))


def test_a_file_that_is_cut_off_is_a_bad_image(tmp_path: Path) -> None:
    whole = png(made_up(3))
    for length in range(60, len(whole) - 20, 17):
        with pytest.raises(BadImage):
            decoded(tmp_path, whole[:length], PixelFormat())


def test_other_images_are_left_to_pillow() -> None:
    for mode in ("RGB", "RGBA", "L", "LA", "P", "I;16"):
        file = io.BytesIO()
        Image.new(mode, (4, 3)).save(file, "PNG")
        assert deep_colour_file(Image.open(file)) is None
    assert deep_colour_file(Image.new("RGB", (4, 3))) is None


def test_an_exported_encoder_prepares_it_alike(tmp_path: Path) -> None:
    values = made_up(3, 4096)
    whole = Preprocessing(size=7, crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    there = whole(decoded(tmp_path, png(values), PixelFormat()))
    assert whole(Image.open(io.BytesIO(png(values)))).equal(there)
