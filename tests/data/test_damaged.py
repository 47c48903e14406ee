"""Damage of any kind, in any format: the picture, or a BadImage that is named and can be skipped; never a traceback."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from moco.data.beton.file import BetonFile, BetonSource
from moco.data.beton.side_data import side_path
from moco.data.beton.writer import write_beton
from moco.data.decode import BadImage, decode, open_image, upright_size
from moco.data.folder import FolderSource
from moco.encoders import build_encoder
from moco.errors import InputError
from moco.report.neighbours import grid
from moco.run import checkpoint
from tests.data.conftest import make_photo
from tests.data.test_loader import joined, loader

Image.init()
# the slow ones: an ICNS file holds ten pictures of up to 1024 px; EPS looks for Ghostscript; QOI and DDS are in Python
CASES = dict.fromkeys(sorted(Image.SAVE), 300) | {"ICNS": 8, "EPS": 30, "QOI": 60, "DDS": 60, "PDF": 30}


def written(kind: str) -> bytes:
    """A small picture as a file of this format; empty where Pillow only has a place for somebody else's writer."""
    for mode in ("RGB", "L", "P", "1", "RGBA"):
        file = io.BytesIO()
        try:
            make_photo(1, 24, 18).convert(mode).save(file, kind)
        except (OSError, ValueError, KeyError):
            continue
        return file.getvalue()
    return b""


def damaged(data: bytes, count: int) -> Iterator[bytes]:
    """Cut off anywhere, and with one to three bytes changed: anywhere, and among the first 200."""
    rng = np.random.default_rng(len(data))
    for number in range(count):
        changed = bytearray(data)
        if number % 2:
            del changed[int(rng.integers(len(data))) :]
        else:
            for place in rng.integers(0, min(len(data), 200) if number % 4 else len(data), rng.integers(1, 4)):
                changed[place] = rng.integers(256)
        yield bytes(changed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CASES)
def test_damage_gives_the_picture_or_a_bad_image(kind: str) -> None:
    data = written(kind)
    if not data:
        pytest.skip("Pillow does not write it by itself")
    readable, reasons = 0, set[str]()
    for case in damaged(data, CASES[kind]):
        try:
            image = open_image(case)
            size = upright_size(image)
            pixels = decode(image)
        except BadImage as problem:
            reasons.add(str(problem))
        else:
            readable += 1
            assert pixels.shape == (*size, 3)
            assert pixels.dtype == np.uint8
    assert readable < CASES[kind]
    assert all(reason and "\n" not in reason for reason in reasons)


class Failing(ImageFile.ImageFile):
    """A plugin of Pillow that fails in a way that no plugin should."""

    format = "FAILING"
    format_description = "fails"
    error: Exception | None = None
    where = "open"
    wrong_size = (8, 8)

    def _open(self) -> None:
        self._size, self._mode = self.wrong_size, "RGB"
        if self.error is not None and self.where == "open":
            raise self.error

    def load(self) -> Any:
        if self.error is not None:
            raise self.error
        return super().load()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tree: Path) -> Callable[..., Path]:
    """Puts a file train/ant/3.jpg into the tree, which the plugin takes for its own."""

    def accept(prefix: bytes) -> bool:
        return prefix.startswith(b"FAIL")

    def make(**how: Any) -> Path:
        for name, value in how.items():
            monkeypatch.setattr(Failing, name, value)
        monkeypatch.setitem(Image.OPEN, "FAILING", (Failing, accept))
        monkeypatch.setattr(Image, "ID", [*Image.ID, "FAILING"])
        path = tree / "train/ant/3.jpg"
        path.write_bytes(b"FAIL" + bytes(100))
        return path

    return make


FAULTS: list[dict[str, Any]] = [
    {"error": error, "where": where}
    for error in (RuntimeError("it is broken"), KeyError(7), AssertionError(), UnicodeDecodeError("x", b"", 0, 1, "y"))
    for where in ("open", "load")
] + [{"wrong_size": size} for size in ((0, 5), (-3, 4))]


@pytest.mark.parametrize("how", FAULTS, ids=str)
def test_whatever_a_plugin_raises_is_a_bad_image(failing: Callable[..., Path], tree: Path, how: dict[str, Any]) -> None:
    """In the folder and in `write`, without and with --skip-bad-images."""
    path = failing(**how)
    source = FolderSource(tree / "train")
    with pytest.raises(InputError, match=rf"image 3 \({path}\) cannot be read: \S+"):
        list(loader(source).epoch(0))
    load = loader(source, skip_bad_images=True)
    assert 3 not in joined(load.epoch(0)).index
    assert set(load.bad) == {3}
    pytest.importorskip("ffcv")
    out = tree / "x.beton"
    with pytest.raises(InputError, match=f"1 of 24 images cannot be read .{path}: "):
        write_beton(source, out)
    assert not out.exists()
    assert set(write_beton(source, out, skip_bad_images=True).left_out) == {"ant/3.jpg"}
    assert len(BetonSource(out)) == 23


def test_the_neighbours_leave_out_what_cannot_be_read(tree: Path) -> None:
    """The names beside the pictures are still theirs."""
    (tree / "val/ant/1.jpg").write_bytes(b"no picture")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"module.encoder_q.{k}": v for k, v in build_encoder("smallcnn", 8).state_dict().items()}
    checkpoint.save(tree / "checkpoint_0001.pth.tar", {"epoch": 2, "arch": "smallcnn", "state_dict": state})
    options = {"dataset": "folder", "data": str(tree), "image_size": 32, "recipe": "v1", "arch": "smallcnn"}
    rows = grid(tree / "checkpoint_0001.pth.tar", options, queries=8)
    shown = {row.query.name: row.query.label for row in rows}
    kept = [f"{kind}/{i}.jpg" for kind in ("ant", "bee", "cat") for i in range(3) if (kind, i) != ("ant", 1)]
    assert shown == {str(tree / "val" / name): name[:3] for name in kept}
    for row in rows:
        assert {row.query.name, *(one.name for one in row.nearest)} == set(shown)


def copy_of_one(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """A .beton whose samples' JPEGs are of these sizes, and whose table says 24×18 of each; without side data."""
    for number in range(len(sizes)):
        make_photo(number, 24, 18).save(folder / f"{number}.jpg")
    path = folder / "x.beton"
    write_beton(FolderSource(folder, labels_required=False), path, quality=100)
    side_path(path).unlink()
    file = BetonFile(path)
    for number, (width, height) in enumerate(sizes):
        packed = io.BytesIO()
        make_photo(9 + number, width, height).save(packed, "JPEG", quality=40)
        put(path, int(file.start[number]), packed.getvalue(), int(file.stored_bytes[number]))
    return path


def put(path: Path, at: int, data: bytes, room: int) -> None:
    assert len(data) <= room
    file: IO[bytes]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data.ljust(room, b"\0"))


def test_a_beton_without_checksums_gives_no_pixels_of_another_sample(tmp_path: Path) -> None:
    """FFCV's decoder says that all is well where a JPEG is smaller than the table says, and leaves old pixels."""
    pytest.importorskip("ffcv")
    source = BetonSource(copy_of_one(tmp_path, [(24, 18), (12, 18), (24, 9), (32, 24)]))
    first = source.decode(0)
    assert first.shape == (18, 24, 3)
    for index in (1, 2, 3):
        with pytest.raises(BadImage, match="its size differs from that in the table"):
            source.decode(index)


def test_damaged_jpegs_of_a_beton_without_checksums(tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    path = copy_of_one(tmp_path, [(24, 18)])
    start, room = int(BetonFile(path).start[0]), int(BetonFile(path).stored_bytes[0])
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(room)
    source = BetonSource(path)
    bad = 0
    for case in damaged(data, 400):
        put(path, start, case, room)
        try:
            assert source.decode(0).shape == (18, 24, 3)
        except BadImage:
            bad += 1
    assert 0 < bad < 400
