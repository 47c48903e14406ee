"""Which files are images: those that can be decoded, whatever they are called and whatever text they carry."""

from __future__ import annotations

import io
import struct
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco.data import heif
from moco.data.decode import BadImage, decode, open_image, upright_size
from moco.data.folder import FolderSource
from moco.data.png import without_text
from moco.errors import InputError
from tests.data.conftest import make_photo

EMF = struct.pack("<LL8l", 1, 108, 0, 0, 99, 99, 0, 0, 2000, 2000) + b" EMF" + bytes(100)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
RECOGNISED = {
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(600),
    "GRIB": b"GRIB" + bytes(3) + b"\1" + bytes(200),
    "BUFR": b"BUFR" + bytes(200),
    "EMF": EMF,
    "MPEG": b"\0\0\1\xb3\x10\0\x10\x13" + bytes(200),
    "EPS": EPS,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", RECOGNISED)
def test_what_pillow_only_recognises_is_a_foreign_file(tree: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no Ghostscript
    (tree / "train/ant/features").write_bytes(RECOGNISED[kind])
    with Image.open(tree / "train/ant/features") as image:
        assert image.format in (kind, "WMF")  # else this test says nothing
    source = FolderSource(tree / "train")
    assert len(source) == 24
    assert source.notes == ["left out 1 files that are not images: ant/features"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "TGA", "SGI"])
def test_content_that_can_be_decoded_is_an_image(tree: Path, kind: str) -> None:
    make_photo(1, 20, 16).save(tree / "train/ant/x.data", kind)
    source = FolderSource(tree / "train")
    assert source.decode(source.paths.index("ant/x.data")).shape == (16, 20, 3)
    assert source.notes == []


# Text and profiles of PNG files


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", checksum)


def png(*before: bytes, after: bytes = b"", image: Image.Image | None = None) -> bytes:
    """A PNG with chunks before and after its pixels."""
    packed = io.BytesIO()
    (image or make_photo(3, 24, 16)).save(packed, "PNG")
    plain = packed.getvalue()
    return plain[:33] + b"".join(before) + plain[33:-12] + after + plain[-12:]


LONG = zlib.compress(b"x" * 1_500_000)
TEXTS = {
    "long compressed text": chunk(b"zTXt", b"prompt\0\0" + LONG),
    "long international text": chunk(b"iTXt", b"prompt\0\1\0\0\0" + LONG),
    "long profile": chunk(b"iCCP", b"scanner\0\0" + LONG),
    "long text that may turn": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "unknown compression": chunk(b"zTXt", b"prompt\0\7abc"),
    "unknown compression of a profile": chunk(b"iCCP", b"scanner\0\7abc"),
    "empty profile": chunk(b"iCCP", b""),
    "wrong checksum": chunk(b"tEXt", b"prompt\0abc", checksum=5),
    "wrong checksum of text that may turn": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>", checksum=5),
    "damaged text that may turn": chunk(b"zTXt", b"Raw profile type exif\0\0abc"),
    "70 MB of text in 70 chunks": b"".join(chunk(b"tEXt", b"a\0" + bytes(1_000_000)) for _ in range(70)),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_does_not_make_a_picture_unreadable(tmp_path: Path, text: str, place: str) -> None:
    data = png(TEXTS[text]) if place == "before" else png(after=TEXTS[text])
    assert np.array_equal(decode(open_image(data)), np.asarray(make_photo(3, 24, 16)))
    (tmp_path / "x.png").write_bytes(data)
    (tmp_path / "y").write_bytes(data)
    source = FolderSource(tmp_path, labels_required=False)
    assert source.paths == ["x.png", "y"]
    assert [source.size(i) for i in range(2)] == [(16, 24), (16, 24)]


@pytest.mark.parametrize(
    "turning",
    [
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<a tiff:Orientation="6"/>'),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<a tiff:Orientation="6"/>')),
    ],
    ids=["plain", "compressed"],
)
def test_an_orientation_in_text_is_kept(turning: bytes) -> None:
    image = open_image(png(TEXTS["long compressed text"], turning))
    assert upright_size(image) == (24, 16)


def test_a_png_without_text_is_left_alone() -> None:
    """Cut off anywhere, too; and pixels that are damaged stay so."""
    whole = png()
    for end in range(8, len(whole), 7):
        assert without_text(whole[:end]) is not None
        assert without_text(whole[:end]) == whole[:end]
    with pytest.raises(BadImage, match="truncated"):
        decode(open_image(png(TEXTS["long profile"])[:-60]))


# HEIC

HEIC = b"\0\0\0\x18ftypheic" + bytes(100)


@pytest.fixture
def no_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heif.can_read.cache_clear()
    yield
    heif.can_read.cache_clear()


@pytest.mark.usefixtures("no_reader")
def test_heic_says_what_to_install(tree: Path) -> None:
    (tree / "train/ant/IMG_1.HEIC").write_bytes(HEIC)
    (tree / "train/ant/x.txt").write_text("no picture")
    (note,) = FolderSource(tree / "train").notes
    assert "left out 2 files that are not images: " in note
    assert note.endswith("; to read HEIC pictures, `pip install pillow-heif`, or convert them")
    (tree / "train/ant/0.jpg").write_bytes(HEIC)  # renamed, as phones and messengers do
    with pytest.raises(BadImage, match="pip install pillow-heif"):
        FolderSource(tree / "train").decode(0)
    (tree / "new").mkdir()
    (tree / "new/IMG_1.heic").write_bytes(HEIC)
    with pytest.raises(InputError, match=r"no images in .*pip install pillow-heif"):
        FolderSource(tree / "new", labels_required=False)
    (tree / "train/dog").mkdir()
    (tree / "train/dog/IMG_1.heic").write_bytes(HEIC)
    with pytest.raises(InputError, match=r"no image in 1 of the 4 .*pip install pillow-heif"):
        FolderSource(tree / "train")


def test_heic_is_read_with_pillow_heif(
    tree: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With a stand-in for the library, which registers a plugin as it does."""
    opened: Callable[..., Image.Image] = lambda file, name: make_photo(4, 30, 20)  # noqa: E731

    def register() -> None:
        Image.init()
        monkeypatch.setitem(Image.OPEN, "HEIF", (opened, lambda prefix: prefix[4:12] == b"ftypheic"))
        monkeypatch.setattr(Image, "ID", ["HEIF", *Image.ID])

    library = types.ModuleType("pillow_heif")
    library.register_heif_opener = register  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    heif.can_read.cache_clear()
    request.addfinalizer(heif.can_read.cache_clear)
    for name in ("IMG_1.HEIC", "photo", "z.jpg"):
        (tree / "train/ant" / name).write_bytes(HEIC)
    source = FolderSource(tree / "train")
    assert (len(source), source.notes) == (27, [])
    for name in ("IMG_1.HEIC", "photo", "z.jpg"):
        index = source.paths.index(f"ant/{name}")
        assert source.size(index) == (20, 30)
        assert np.array_equal(source.decode(index), np.asarray(make_photo(4, 30, 20)))
