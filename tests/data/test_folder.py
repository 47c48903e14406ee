"""Folders of images: torchvision's order and labels, and one clear sentence for each way a folder can be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from moco.data.decode import BadImage
from moco.data.folder import FolderSource
from moco.data.source import ArraySource, check_same_classes
from moco.errors import InputError


def test_order_is_imagefolders(shared_tree: Path) -> None:
    ours, theirs = FolderSource(shared_tree / "train"), ImageFolder(str(shared_tree / "train"))
    assert [(ours.name(i), int(ours.labels[i])) for i in range(len(ours))] == theirs.samples


def test_labels_and_pixels_are_imagefolders(tree: Path) -> None:
    (tree / "train/bee/deep/er").mkdir(parents=True)
    shutil.copy(tree / "train/bee/0.jpg", tree / "train/bee/deep/er/z.JPEG")
    shutil.copy(tree / "train/bee/1.jpg", tree / "train/bee/10.jpg")
    ours, theirs = FolderSource(tree / "train"), ImageFolder(str(tree / "train"))
    assert ours.classes == theirs.classes
    names = [ours.name(i) for i in range(len(ours))]
    assert dict(zip(names, ours.labels.tolist(), strict=True)) == dict(theirs.samples)
    assert ours.labels.tolist() == sorted(ours.labels.tolist())
    for path, _ in theirs.samples[:3]:
        index = names.index(path)
        assert np.array_equal(ours.decode(index), np.asarray(Image.open(path).convert("RGB")))
        assert ours.size(index) == ours.decode(index).shape[:2]


def test_hidden_files_are_ignored(tree: Path) -> None:
    before = FolderSource(tree / "train").paths
    (tree / "train/.cache").mkdir()
    (tree / "train/ant/.thumbs").mkdir()
    for name in (".DS_Store", "ant/._0.jpg", "ant/.thumbs/0.jpg", ".cache/0.jpg"):
        (tree / "train" / name).write_bytes(b"x")
    after = FolderSource(tree / "train")
    assert after.paths == before
    assert after.notes == []


def test_files_that_are_no_images_are_named_and_wrongly_named_images_are_read(tree: Path) -> None:
    (tree / "train/ant/notes.txt").write_text("not an image")
    (tree / "train/ant/Thumbs.db").write_bytes(b"\0" * 100)
    (tree / "train/cat/0.jpg").rename(tree / "train/cat/photo")  # no suffix at all
    Image.open(tree / "train/cat/1.jpg").save(tree / "train/cat/a.jpg", "PNG")  # a PNG called jpg
    source = FolderSource(tree / "train")
    assert len(source) == 25
    assert "cat/photo" in source.paths
    assert source.decode(source.paths.index("cat/a.jpg")).shape[2] == 3
    (note,) = source.notes
    assert "2 files that are not images" in note
    assert "ant/notes.txt" in note
    assert "ant/Thumbs.db" in note


def test_a_subset_takes_its_order_from_the_list(tree: Path) -> None:
    source = FolderSource(tree / "train", subset=["cat", "ant"])
    assert source.classes == ["cat", "ant"]
    assert [source.paths[0], source.paths[8]] == ["cat/0.jpg", "ant/0.jpg"]
    assert source.labels.tolist() == [0] * 8 + [1] * 8
    with pytest.raises(InputError, match=r"2 of the 3 classes.*: dog eel;"):
        FolderSource(tree / "train", subset=["cat", "dog", "eel"])


def test_photos_without_classes(tree: Path) -> None:
    source = FolderSource(tree / "train/ant", labels_required=False)
    assert (len(source), source.classes, set(source.labels.tolist())) == (8, [], {-1})
    with pytest.raises(InputError, match="no class folders"):
        FolderSource(tree / "train/ant")


def test_what_is_wrong_with_a_folder_is_said(tree: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        FolderSource(tree / "nowhere")
    (tree / "train/dog").mkdir()
    (tree / "train/eel").mkdir()
    (tree / "train/eel/readme.md").write_text("no images here")
    with pytest.raises(InputError, match=r"2 of the 5 classes .* dog, eel"):
        FolderSource(tree / "train")
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match="no images"):
        FolderSource(tree / "empty", labels_required=False)
    shutil.copy(tree / "val/ant/0.jpg", tree / "val/stray.jpg")
    with pytest.raises(InputError, match=r"stray\.jpg"):
        FolderSource(tree / "val")


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "gone"])
def test_a_bad_file_is_a_bad_image(tree: Path, content: bytes | None) -> None:
    source = FolderSource(tree / "train")
    path = Path(source.name(3))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for read in (source.open, source.size, source.decode):
        with pytest.raises(BadImage):
            read(3)


def test_splits_must_have_the_same_classes() -> None:
    def split(*classes: str) -> ArraySource:
        return ArraySource(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1), list(classes), "x")

    check_same_classes(split("a", "b"), split("a", "b"))
    with pytest.raises(InputError, match="only train has b; only val has c"):
        check_same_classes(split("a", "b"), split("a", "c"))
    with pytest.raises(InputError, match="another order"):
        check_same_classes(split("a", "b"), split("b", "a"))
    many = [str(i) for i in range(20)]
    with pytest.raises(InputError, match="0, 1, 2, 3, 4 and 15 more"):
        check_same_classes(split(*many), split())
