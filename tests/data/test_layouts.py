"""Data sets as they come down, made up small: labels as published, or the commands that put the folders right."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco.data.datasets import has_split, open_split
from moco.data.folder import FolderSource
from moco.data.source import check_same_classes
from moco.errors import InputError

CLASSES = ("n01443537", "n01629819", "n02769748")
VAL = {1: CLASSES[2], 2: CLASSES[0], 3: CLASSES[2], 4: CLASSES[1]}  # number of an image -> its class


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (value, value, value)).save(path, "PNG")


def imagenet(root: Path) -> Path:
    """train/ with class folders; val/ flat. A validation image's grey is its number."""
    for name in CLASSES:
        for i in range(2):
            picture(root / "train" / name / f"{name}_{i}.JPEG")
    for number in VAL:
        picture(root / f"val/ILSVRC2012_val_{number:08d}.JPEG", number)
    return root


def solution(path: Path) -> None:
    rows = [f"ILSVRC2012_val_{number:08d},{name} 85 1 499 272 {name} 1 2 3 4 " for number, name in VAL.items()]
    path.write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))


def check_val(data: Path, origin: str) -> FolderSource:
    """Every image has its own label, and classes are train's."""
    train, val = open_split(str(data)), open_split(str(data), split="val")
    assert isinstance(val, FolderSource)
    check_same_classes(train, val)
    assert val.classes == list(CLASSES)
    got = {int(val.decode(i)[0, 0, 0]): val.classes[int(val.labels[i])] for i in range(len(val))}
    assert got == VAL
    assert val.labels.tolist() == sorted(val.labels.tolist())
    assert any(origin in note for note in val.notes)
    assert has_split(str(data), "folder", "val")
    return val


def test_tiny_imagenet(tmp_path: Path) -> None:
    for name in CLASSES:
        picture(tmp_path / "train" / name / "images" / f"{name}_0.JPEG")
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("n_0.JPEG\t0\t10\t63\t58\n")
    for number in VAL:
        picture(tmp_path / f"val/images/val_{number}.JPEG", number)
    picture(tmp_path / "test/images/test_0.JPEG")
    lines = [f"val_{number}.JPEG\t{name}\t0\t32\t44\t62" for number, name in VAL.items()]
    (tmp_path / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
    val = check_val(tmp_path, "val_annotations.txt")
    assert not any("left out" in note for note in val.notes)
    subset = tmp_path / "two.txt"
    subset.write_text(f"{CLASSES[2]} {CLASSES[0]}")
    chosen = open_split(str(tmp_path), split="val", subset=str(subset))
    assert (chosen.classes, chosen.labels.tolist()) == ([CLASSES[2], CLASSES[0]], [0, 0, 1])
    subset.write_text("n00000000")
    with pytest.raises(InputError, match="1 of the 1 classes asked for"):
        open_split(str(tmp_path), split="val", subset=str(subset))


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_from_kaggle(tmp_path: Path, given: str) -> None:
    imagenet(tmp_path / "ILSVRC/Data/CLS-LOC")
    picture(tmp_path / "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG")
    solution(tmp_path / "LOC_val_solution.csv")
    check_val(tmp_path / given, "LOC_val_solution.csv")


def test_imagenet_from_the_official_archives(tmp_path: Path) -> None:
    """The devkit numbers the classes in an order of its own."""
    savemat = pytest.importorskip("scipy.io").savemat
    imagenet(tmp_path)
    devkit = tmp_path / "ILSVRC2012_devkit_t12/data"
    devkit.mkdir(parents=True)
    order = [CLASSES[1], CLASSES[2], CLASSES[0], "n00001740"]
    synsets = np.zeros(4, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for row, name in enumerate(order):
        synsets[row] = (row + 1, name, "a, b")
    savemat(devkit / "meta.mat", {"synsets": synsets.reshape(4, 1)})
    numbers = [order.index(VAL[number]) + 1 for number in sorted(VAL)]
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in numbers))
    check_val(tmp_path, "ground_truth.txt")
    (devkit / "meta.mat").write_bytes(b"no matrix")
    with pytest.raises(InputError, match=r"ground_truth\.txt is damaged"):
        open_split(str(tmp_path), split="val")


def test_the_labels_are_missing_or_damaged(tmp_path: Path) -> None:
    imagenet(tmp_path)
    for required in (True, False):
        with pytest.raises(InputError, match=r"put Kaggle's LOC_val_solution\.csv.* into "):
            open_split(str(tmp_path), split="val", labels_required=required)
    solution(tmp_path / "LOC_val_solution.csv")
    text = (tmp_path / "LOC_val_solution.csv").read_text()
    for wrong in (text.replace("ImageId", "id"), text + "\nILSVRC2012_val_00000009,", text + "\nx", "\xff\0"):
        (tmp_path / "LOC_val_solution.csv").write_bytes(wrong.encode("latin-1"))
        with pytest.raises(InputError, match=r"LOC_val_solution\.csv is damaged"):
            open_split(str(tmp_path), split="val")
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nILSVRC2012_val_00000099,n01 1 2 3 4\n")
    with pytest.raises(InputError, match="names none of the images"):
        open_split(str(tmp_path), split="val")


def test_an_image_that_the_list_does_not_name_is_left_out(tmp_path: Path) -> None:
    imagenet(tmp_path)
    picture(tmp_path / "val/ILSVRC2012_val_00000077.JPEG")
    solution(tmp_path / "val/LOC_val_solution.csv")
    val = check_val(tmp_path, "LOC_val_solution.csv")
    assert val.notes[-1].endswith(": ILSVRC2012_val_00000077.JPEG")


def run(message: str, start: str) -> None:
    """Runs the commands between backticks of a message, as a user would."""
    command = message.split("`")[1]
    assert command.startswith(start)
    subprocess.run(command, shell=True, check=True, timeout=60)


def test_class_archives_are_refused_with_the_commands(tmp_path: Path) -> None:
    imagenet(tmp_path / "made")
    (tmp_path / "train").mkdir()
    for name in CLASSES:
        with tarfile.open(tmp_path / f"train/{name}.tar", "w") as archive:
            for path in sorted((tmp_path / "made/train" / name).iterdir()):
                archive.add(path, path.name)
    with pytest.raises(InputError, match="3 archives, one for each class") as caught:
        open_split(str(tmp_path), labels_required=False)
    run(str(caught.value), "cd ")
    assert open_split(str(tmp_path)).classes == list(CLASSES)
    assert len(open_split(str(tmp_path))) == 6


def test_the_official_archives_are_refused_with_the_commands(tmp_path: Path) -> None:
    imagenet(tmp_path / "made")
    for split, name in (("train", "ILSVRC2012_img_train.tar"), ("val", "ILSVRC2012_img_val.tar")):
        with tarfile.open(tmp_path / name, "w") as archive:
            for path in sorted((tmp_path / "made" / split).iterdir()):
                archive.add(path, path.name)
    solution(tmp_path / "LOC_val_solution.csv")
    with pytest.raises(InputError, match="only archives") as caught:
        open_split(str(tmp_path), labels_required=False)
    run(str(caught.value), "cd ")
    check_val(tmp_path, "LOC_val_solution.csv")


def test_a_split_given_instead_of_its_parent(tree: Path) -> None:
    for split in ("train", "val"):
        with pytest.raises(InputError, match=rf"is the folder of one split; give the folder that holds it, {tree}$"):
            open_split(str(tree / split), labels_required=False)


def test_the_parent_of_the_parent(tree: Path) -> None:
    with pytest.raises(InputError, match=rf"there is {tree}/train: give {tree}$"):
        open_split(str(tree.parent), labels_required=False)


def test_class_folders_alone(tree: Path) -> None:
    classes = tree.parent / "my animals"
    (tree / "train").rename(classes)
    with pytest.raises(InputError, match=r"If the folders in .*animals are the classes") as caught:
        open_split(str(classes), labels_required=False)
    run(str(caught.value), "mkdir ")
    assert open_split(f"{classes}.data").classes == ["ant", "bee", "cat"]
