"""File systems as they are: names in no encoding, links that loop, pipes, closed folders, half a download."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from moco.commands import run_command
from moco.data import listing
from moco.data.beton.__main__ import main as beton
from moco.data.beton.file import BetonFile, BetonSource
from moco.data.beton.writer import write_beton
from moco.data.datasets import find_beton, has_split, open_split, split_folder
from moco.data.decode import BadImage, decode, open_image
from moco.data.folder import FolderSource
from moco.data.source import ArraySource
from moco.errors import ESCAPED, InputError
from moco.run.files import write_text
from tests.closed import closed
from tests.data.conftest import make_photo

ROOT = Path(__file__).parents[2]
LATIN = os.fsdecode(b"caf\xe9")  # a byte that is no UTF-8
SMALL = "-a smallcnn --epochs 1 --moco-k 8 --moco-dim 8 -b 8 --image-size 8 --eval-freq 0 --no-tensorboard -j 1"


def train(data: Path, out: Path) -> subprocess.CompletedProcess[bytes]:
    """main_moco.py with a terminal that only takes proper UTF-8."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "main_moco.py"), str(data), "--output-dir", str(out), *SMALL.split()]
    return subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, timeout=200, check=False)


# Names


def test_names_that_are_not_utf8_are_escaped(tree: Path) -> None:
    """File, class, data folder and output folder; in the log, log.jsonl, a .beton's JSON, `info` and error messages."""
    data = tree.parent / LATIN
    tree.rename(data)
    (data / "train/cat").rename(data / "train" / f"{LATIN}s")
    (data / "train" / f"{LATIN}s/0.jpg").rename(data / "train" / f"{LATIN}s/{LATIN}.jpg")
    (data / "train/ant" / f"{LATIN}.txt").write_text("no image")
    done = train(data, data / "out")
    assert done.returncode == 0, done.stderr
    assert rb"left out 1 files that are not images: ant/caf\xe9.txt" in done.stdout
    records = (data / "out/log.jsonl").read_bytes().decode("ascii").splitlines()
    assert json.loads(records[0])["options"]["data"] == str(data)


def test_messages_with_such_names_can_be_printed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every command: the streams of `run_command` take any name."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run_command(lambda: len(FolderSource(tree / LATIN))) == 2
    terminal.flush()
    assert terminal.buffer.getvalue().endswith(rb"/caf\xe9: check the path" + b"\n")  # type: ignore[attr-defined]


def test_a_beton_of_names_that_are_not_utf8(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ffcv")
    data = tree.parent / LATIN
    tree.rename(data)
    for split in ("train", "val"):
        (data / split / "cat").rename(data / split / f"{LATIN}s")
    (data / "train/ant/0.jpg").rename(data / "train/ant" / f"{LATIN}.jpg")
    out = data / f"{LATIN}.beton"
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    for command in (["write", str(data), str(out), "--mode", "raw"], ["info", str(out)], ["verify", str(out)]):
        assert beton(command) == 0
    terminal.flush()
    assert terminal.buffer.getvalue().count(rb"caf\xe9.beton") == 3  # type: ignore[attr-defined]
    source = BetonSource(out)
    assert source.classes == ["ant", "bee", f"{LATIN}s"]
    assert source.name(7).endswith(f"ant/{LATIN}.jpg")


def test_text_with_such_names_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "x", f"{LATIN} ü")
    assert (tmp_path / "x").read_bytes() == rb"caf\xe9 " + "ü".encode()
    assert "ü€".encode("ascii", ESCAPED) == rb"\xfc\u20ac"


# Links and what is not a file


def paths(root: Path) -> list[str]:
    return FolderSource(root, labels_required=False).paths


def test_links_that_loop(tree: Path) -> None:
    before = paths(tree / "train")
    for name, goal in (("a", "."), ("b", "."), ("up", ".."), ("root", "/"), ("itself", "itself")):
        (tree / "train/ant" / name).symlink_to(goal)
    (tree / "train/whole").symlink_to(".")
    source = FolderSource(tree / "train")
    assert source.paths == before
    assert source.classes == ["ant", "bee", "cat"]
    assert source.notes[0].startswith("left out 6 files that are not images: whole (a link to a folder that holds it)")


def test_a_folder_is_read_once_by_its_own_path(tree: Path) -> None:
    """The links are of names that sort before and after it."""
    (tree / "train/ant/more").mkdir()
    (tree / "train/ant/0.jpg").rename(tree / "train/ant/more/0.jpg")
    for name in ("a", "z"):
        (tree / "train/ant" / name).symlink_to("more")
    assert [path for path in paths(tree / "train") if path.endswith("0.jpg")] == [
        "ant/more/0.jpg", "bee/0.jpg", "cat/0.jpg"
    ]  # fmt: skip


def test_links_that_lead_out_are_followed(tree: Path) -> None:
    """ImageNet-100 is often a folder of links."""
    links = tree / "links"
    (links / "ant").mkdir(parents=True)
    (links / "bee").symlink_to(tree / "train/bee")
    for i in range(8):
        (links / f"ant/{i}.jpg").symlink_to(tree / f"train/ant/{i}.jpg")
    (links / "ant/extra").symlink_to(tree / "val/ant")
    assert paths(links) == sorted(
        [f"{kind}/{i}.jpg" for kind in ("ant", "bee") for i in range(8)] + [f"ant/extra/{i}.jpg" for i in range(3)]
    )


def test_a_link_that_leads_nowhere_is_a_bad_image(tree: Path) -> None:
    """The disk of the images may not be there: to leave them out in silence would be worse."""
    (tree / "train/ant/0.jpg").unlink()
    (tree / "train/ant/0.jpg").symlink_to("/nowhere/0.jpg")
    source = FolderSource(tree / "train")
    assert len(source) == 24
    with pytest.raises(BadImage, match="No such file"):
        source.open(0)


@pytest.mark.parametrize("name", ["pipe", "pipe.jpg"])
@pytest.mark.parametrize("place", ["train", "train/ant", "train/ant/deep"])
def test_named_pipes_are_left_out(tree: Path, name: str, place: str) -> None:
    before = paths(tree / "train")
    (tree / place).mkdir(exist_ok=True)
    os.mkfifo(tree / place / name)
    source = FolderSource(tree / "train")
    assert source.paths == before
    (note,) = source.notes
    assert note.endswith(f"{place.removeprefix('train').lstrip('/')}/{name} (not a file)".lstrip("/"))


# Folders and files that may not be read


def test_closed_folders_and_files_are_one_sentence(tree: Path) -> None:
    (tree / "train/ant/deep").mkdir()
    told = f"cannot read {tree}.*: Permission denied; check the path"
    with closed(tree):
        for function in (has_split, open_split):
            with pytest.raises(InputError, match=told):
                function(str(tree), "folder", "train")
    with closed(tree / "train"):
        assert has_split(str(tree), "folder", "train")  # it is there
        with pytest.raises(InputError, match=told):
            open_split(str(tree), "folder", "train")
    for place in ("train/ant", "train/ant/deep"):
        with closed(tree / place), pytest.raises(InputError, match=f"{place}: Permission denied"):
            FolderSource(tree / "train")
    source = FolderSource(tree / "train")
    with closed(tree / "train/ant/3.jpg"), pytest.raises(BadImage, match="Permission denied"):
        source.open(3)
    for question in (find_beton, split_folder):
        with closed(tree), pytest.raises(InputError, match="Permission denied"):
            question(str(tree), "train")


def test_a_closed_beton_is_one_sentence(tree: Path, capsys: Any) -> None:
    pytest.importorskip("ffcv")
    path = tree / "x.beton"
    write_beton(FolderSource(tree / "val"), path)
    for where in (path, tree):
        with closed(where), pytest.raises(InputError, match="Permission denied"):
            BetonFile(path)
        with closed(where):
            assert beton(["info", str(path)]) == 2
        assert "Permission denied" in capsys.readouterr().err


def test_an_error_without_a_path_is_a_sentence_too() -> None:
    @listing.says_what_cannot_be_read
    def fails() -> None:
        raise OSError("the disk is on fire")

    with pytest.raises(InputError, match="cannot read the data: the disk is on fire"):
        fails()


# Contents


def jpeg(**options: Any) -> bytes:
    packed = io.BytesIO()
    make_photo(0, 200, 150).save(packed, "JPEG", quality=90, **options)
    return packed.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 2}], ids=str)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_half_a_download_filled_with_zeros_is_a_bad_image(tree: Path, options: dict[str, Any], share: float) -> None:
    """libjpeg decodes it without an error: the rest is grey. With a thumbnail, which has an end of its own."""
    thumbnail = io.BytesIO()
    make_photo(1, 16, 16).save(thumbnail, "JPEG")
    data = jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail.getvalue(), **options)
    cut = int(len(data) * share)
    half = data[:cut] + bytes(len(data) - cut)
    with pytest.raises(BadImage, match="not downloaded in full"):
        open_image(half)
    (tree / "train/ant/0.jpg").write_bytes(half)
    source = FolderSource(tree / "train")
    with pytest.raises(BadImage, match="not downloaded in full"):
        source.decode(0)


def test_zeros_after_the_end_do_no_harm() -> None:
    assert np.array_equal(decode(open_image(jpeg() + bytes(5000))), decode(open_image(jpeg())))


def test_labels_of_a_foreign_beton_that_are_no_classes(tmp_path: Path) -> None:
    """Identifiers of 40 bits: a list of all smaller numbers would not fit into memory."""
    pytest.importorskip("ffcv")
    path = tmp_path / "x.beton"
    write_beton(ArraySource(np.zeros((3, 4, 4, 3), np.uint8), np.array([0, 1 << 40, 5]), [], "x"), path)
    (tmp_path / "x.beton.json").unlink()
    source = open_split(str(path), labels_required=False)
    assert source.labels.tolist() == [-1, -1, -1]
    assert source.classes == []
    assert "go up to 1099511627776, so they are not classes" in source.notes[-1]
    with pytest.raises(InputError, match="without labels"):
        open_split(str(path))
    for command in ("info", "verify"):
        assert beton([command, str(path)]) == 0


def test_grey_of_16_bits_that_is_turned_trains(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.asarray(make_photo(3, 1200, 400).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "x.png", exif=exif)
    assert FolderSource(tmp_path, labels_required=False).open(0).decode(8).array.shape == (150, 50, 3)
