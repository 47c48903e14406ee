"""Which images and labels `data`, `--dataset`, `--subset` and `--loader` mean; torchvision's sets are stood in for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from moco import distributed
from moco.data.augment.recipes import RECIPES
from moco.data.datasets import DATASET_DEFAULTS, DATASETS, IMAGENET100, find_beton, has_split, open_split
from moco.data.folder import FolderSource
from moco.errors import InputError


def test_every_data_set_has_a_size_and_a_recipe() -> None:
    assert set(DATASETS) >= {"folder", "imagenet100", "digits", "cifar10", "cifar100", "stl10", "svhn"}
    assert {recipe for _, recipe in DATASET_DEFAULTS.values()} <= set(RECIPES)


def test_digits() -> None:
    """All 1,797 scans, each in one split, a fifth of every class in val, pixels a plain enlargement."""
    train, val = open_split(None, "digits", "train"), open_split(None, "digits", "val")
    assert len(train) + len(val) == 1797
    scans = load_digits()
    for digit in range(10):
        total = int((scans.target == digit).sum())
        assert (val.labels == digit).sum() == total // 5
        assert (train.labels == digit).sum() == total - total // 5
    image = train.decode(0)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert (image[..., 0] == image[..., 2]).all()
    centres = np.stack([s.decode(i)[2::4, 2::4, 0] for s in (train, val) for i in range(len(s))])
    distance = np.abs(centres[:5, None] / 255 * 16 - scans.images[None]).mean((2, 3)).min(1)
    assert distance.max() < 1.5  # each is an enlargement of one of the scans
    assert len({x.tobytes() for x in centres}) > 1790
    again = open_split("ignored", "digits", "train")
    assert all(np.array_equal(again.decode(i), train.decode(i)) for i in range(50))


def test_folders(tree: Path) -> None:
    train, val = open_split(str(tree)), open_split(str(tree), split="val")
    assert (len(train), len(val)) == (24, 9)
    assert train.classes == val.classes == ["ant", "bee", "cat"]
    assert has_split(str(tree), "folder", "val")
    assert not has_split(str(tree / "train"), "folder", "val")


def test_a_plain_folder_of_photos_is_enough_for_pretraining(tree: Path) -> None:
    photos = str(tree / "train/ant")
    assert len(open_split(photos, labels_required=False)) == 8
    with pytest.raises(InputError, match=r"no .*/train"):
        open_split(photos)
    with pytest.raises(InputError, match=r"no .*/val"):
        open_split(photos, split="val", labels_required=False)


def test_what_is_missing_is_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        open_split(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no .*/train: expected .*/<class>/<image>"):
        open_split(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="needs the folder"):
        open_split(None, "folder")
    for arguments in ({"dataset": "imagenet"}, {"split": "test"}, {"loader": "dali"}):
        with pytest.raises(InputError, match="unknown"):
            open_split(str(tree), **arguments)


def test_imagenet100_out_of_a_full_folder(tmp_path: Path) -> None:
    """A made-up tree with ImageNet's names: the hundred classes are taken in the published order, others left alone."""
    for name in [*sorted(IMAGENET100), "n00000001", "n99999999"]:
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "train" / name / f"{name}_1.JPEG")
    source = open_split(str(tmp_path), "imagenet100")
    assert source.classes == IMAGENET100
    assert isinstance(source, FolderSource)
    assert [path[:9] for path in source.paths] == IMAGENET100
    assert open_split(str(tmp_path), "folder", subset="imagenet100").classes == IMAGENET100
    assert len(open_split(str(tmp_path), "folder")) == 102
    (tmp_path / "train" / IMAGENET100[5]).rename(tmp_path / "train" / "elsewhere")
    with pytest.raises(InputError, match=f"1 of the 100 .* {IMAGENET100[5]};"):
        open_split(str(tmp_path), "imagenet100")


def test_the_hundred_classes() -> None:
    assert len(set(IMAGENET100)) == 100
    assert (IMAGENET100[0], IMAGENET100[99]) == ("n02869837", "n02090622")


def test_subset_files(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("cat\nbee\n")
    assert open_split(str(tree), subset=str(names)).classes == ["cat", "bee"]
    for text in ("", "cat\ncat\n"):
        names.write_text(text)
        with pytest.raises(InputError, match="one class name a line"):
            open_split(str(tree), subset=str(names))
    with pytest.raises(InputError, match="imagenet200"):
        open_split(str(tree), subset="imagenet200")


class Stand:
    """Stands in for one of torchvision's classes; remembers how it was called."""

    def __init__(self, **attributes: Any) -> None:
        self.attributes, self.calls = attributes, []

    def __call__(self, root: str, **options: Any) -> SimpleNamespace:
        self.calls.append({"root": root, **options})
        return SimpleNamespace(**self.attributes)


def test_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for name in ("CIFAR10", "CIFAR100"):
        stand = Stand(data=pixels, targets=[3, 1, 0, 2], classes=["a", "b", "c", "d"])
        monkeypatch.setattr(torchvision.datasets, name, stand)
        source = open_split("/somewhere", name.lower(), "val")
        assert stand.calls == [{"root": "/somewhere", "train": False, "download": True}]
        assert source.labels.tolist() == [3, 1, 0, 2]
        assert np.array_equal(source.decode(2), pixels[2])


def test_stl10_and_svhn_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    stl10 = Stand(data=planes, labels=np.array([-1, 4, -1]), classes=["plane"] * 10)
    svhn = Stand(data=planes, labels=np.array([1, 2, 3]))
    monkeypatch.setattr(torchvision.datasets, "STL10", stl10)
    monkeypatch.setattr(torchvision.datasets, "SVHN", svhn)
    source = open_split(None, "stl10", "train", labels_required=False)
    assert source.labels.tolist() == [-1, 4, -1]
    assert np.array_equal(source.decode(1), planes[1].transpose(1, 2, 0))
    open_split(None, "stl10", "train")
    open_split(None, "stl10", "val")
    assert [call["split"] for call in stl10.calls] == ["train+unlabeled", "train", "test"]
    assert open_split(None, "svhn", "val").classes == [str(d) for d in range(10)]
    assert [call["split"] for call in svhn.calls] == ["test"]


def test_a_failed_download_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: str, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(InputError, match=r"cifar10 could not be .* no network"):
        open_split(None, "cifar10")


def test_only_rank_0_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(data=np.zeros((1, 32, 32, 3), np.uint8), targets=[0], classes=["a"])
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", stand)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    news: list[str | None] = [None, "cifar10 could not be loaded"]
    monkeypatch.setattr(distributed, "broadcast_object", lambda _: news.pop(0))
    open_split(None, "cifar10")
    assert [call["download"] for call in stand.calls] == [False]
    with pytest.raises(InputError, match="could not be loaded"):
        open_split(None, "cifar10")
    assert len(stand.calls) == 1


def test_which_beton_file_a_split_is(tmp_path: Path) -> None:
    one = tmp_path / "in100.beton"
    assert find_beton(str(one), "train") == one
    assert find_beton(str(one), "val") == tmp_path / "in100.val.beton"
    assert find_beton(str(tmp_path), "train") is None
    (tmp_path / "val.beton").touch()
    assert find_beton(str(tmp_path), "train") == tmp_path / "train.beton"
    assert has_split(str(tmp_path), "folder", "val")
    assert not has_split(str(tmp_path), "folder", "train")
    assert not has_split(str(one), "folder", "val")


def test_insisting_on_a_loader(tree: Path) -> None:
    assert isinstance(open_split(str(tree), loader="folder"), FolderSource)
    with pytest.raises(InputError, match="beton write"):
        open_split(str(tree), loader="ffcv")
    with pytest.raises(InputError, match="--loader folder cannot read"):
        open_split(str(tree / "x.beton"), loader="folder")
