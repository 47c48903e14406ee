"""Pairs of colour and depth: NYU-Depth-V2's file, made on the spot, and folders; and that both are cut alike."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.augment import Augment
from moco.data.augment.recipes import RECIPES, Recipe, View
from moco.data.datasets import has_split, open_split
from moco.data.depth import DepthSource, open_depth
from moco.data.depth_crops import DepthLoader, augmented_pairs, depth_of
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.errors import InputError
from tests.data.depth_material import HEIGHT, WIDTH, write_nyu, write_pairs

h5py = pytest.importorskip("h5py")


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    return write_nyu(tmp_path / "nyu")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for split, count, seed in (("train", 5, 0), ("val", 3, 1)):
        write_pairs(tmp_path / "pairs" / split, count, seed)
    return tmp_path / "pairs"


def test_nyu_is_turned_upright_and_split_by_its_file(nyu: Path) -> None:
    """h5py shows width before height, frames are numbered from 1, and depth is in metres."""
    with h5py.File(nyu / "nyu_depth_v2_labeled.mat") as file:
        images, depths = file["images"][()], file["depths"][()]
    assert images.shape == (7, 3, WIDTH, HEIGHT)
    for given in (nyu, nyu / "nyu_depth_v2_labeled.mat"):
        for split, frames in (("train", [0, 2, 4, 6]), ("val", [1, 5])):
            source = open_depth(str(given), split)
            assert len(source) == len(frames) and (source.labels == -1).all() and not source.classes
            for i, frame in enumerate(frames):
                picture = source.decode(i)
                assert picture.shape == (*source.size(i), 3) == (HEIGHT, WIDTH, 3)
                assert (picture[3, 11] == images[frame, :, 11, 3]).all()
                assert source.depth(i).shape == (HEIGHT, WIDTH)
                assert abs(source.depth(i)[3, 11] / 1000 - depths[frame, 11, 3]) <= 0.00051
                assert f"frame {frame + 1}" in source.name(i)
    assert open_depth(str(nyu), "train").depth(0)[0, 0] == 0  # not a number in the file


def test_the_file_of_the_splits_may_be_of_either_format(tmp_path: Path) -> None:
    found = []
    for old in (True, False):
        folder = write_nyu(tmp_path / f"old {old}", old)
        found.append([open_depth(str(folder), split).index.tolist() for split in ("train", "val")])  # type: ignore[attr-defined]
    assert found[0] == found[1] == [[0, 2, 4, 6], [1, 5]]


def test_pairs_lie_side_by_side(pairs: Path) -> None:
    source = open_depth(str(pairs), "val")
    assert len(source) == 3 and source.decode(0).shape == (*source.depth(0).shape, 3)
    assert has_split(str(pairs), "nyu-depth", "val") and not has_split(str(pairs / "train"), "nyu-depth", "val")
    assert len(open_split(str(pairs / "train"), "nyu-depth", labels_required=False)) == 5  # a plain folder trains
    assert not has_split(None, "nyu-depth", "train")


def test_suffixes_are_read_in_either_case(pairs: Path) -> None:
    first = sorted((pairs / "val").glob("*.color.*"))[0]
    stem, suffix = first.name.split(".color.")
    before = open_depth(str(pairs), "val").depth(0)
    first.rename(first.with_name(f"{stem}.Color.{suffix.upper()}"))
    (pairs / "val" / f"{stem}.depth.png").rename(pairs / "val" / f"{stem}.Depth.PNG")
    source = open_depth(str(pairs), "val")
    assert len(source) == 3 and np.array_equal(source.depth(0), before)


def test_two_images_of_one_depth_are_refused(pairs: Path) -> None:
    first = sorted((pairs / "val").glob("*.color.*"))[0]
    stem = first.name.split(".color.")[0]
    other = first.with_name(f"{stem}.color.{'jpeg' if first.suffix == '.png' else 'png'}")
    other.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=rf"has several images called {stem}: keep one of them"):
        open_depth(str(pairs), "val")


def test_two_depths_of_one_image_are_refused(pairs: Path) -> None:
    first = sorted((pairs / "val").glob("*.depth.png"))[0]
    stem = first.name.removesuffix(".depth.png")
    first.with_name(f"{stem}.Depth.PNG").write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=rf"has several depths called {stem}: keep one of them"):
        open_depth(str(pairs), "val")


def test_a_name_may_grow_in_lower_case(pairs: Path) -> None:
    first = sorted((pairs / "val").glob("*.color.*"))[0]
    stem, suffix = first.name.split(".color.")
    first.rename(first.with_name(f"İmg.color.{suffix}"))
    (pairs / "val" / f"{stem}.depth.png").rename(pairs / "val" / "İmg.depth.png")
    assert len(open_depth(str(pairs), "val")) == 3


def alike(images: torch.Tensor, depth: torch.Tensor) -> None:
    """In the material depth is 8 mm + 16 mm · blue, and both are smooth: a crop or a flip of one alone would differ."""
    blue = (depth - 0.008) / 0.016
    shown = depth > 0
    assert shown.float().mean() > 0.5
    assert (images[:, 2] - blue)[shown].abs().mean() < 2.5
    assert (images.flip(3)[:, 2] - blue)[shown].abs().mean() > 8


@pytest.mark.parametrize("kind", ["nyu", "pairs"])
def test_image_and_depth_are_cut_and_flipped_alike(kind: str, nyu: Path, pairs: Path) -> None:
    """Of random crops too small to be the whole picture, about half of them flipped; and of the central square."""
    source = open_depth(str(nyu if kind == "nyu" else pairs), "train")
    plain = Recipe("plain", "", (View(flip=0.5),), mean=(0.0,) * 3, std=(1 / 255,) * 3)  # type: ignore[arg-type]
    augment, flips = Augment(plain, 3), 0
    for epoch in range(4):
        loader = DepthLoader(
            source, Sampler(len(source), 3, 3, drop_last=False), size=20, scale=(0.2, 0.6), workers=1, seed=3
        )
        for batch in loader.epoch(epoch):
            images, depth = augmented_pairs(batch, augment, epoch)
            assert images.shape == (len(depth), 3, 20, 20) and depth.shape[1:] == (20, 20)
            alike(images, depth)
            flips += int((depth != depth_of(batch.crops)).any(dim=(1, 2)).sum())
    assert 0 < flips < 4 * len(source)
    centre = DepthLoader(source, Sampler(len(source), 9, 0, shuffle=False, drop_last=False), size=20, eval_crop=0.9)
    batch = next(centre.epoch(0))
    alike(batch.crops[:, 0].permute(0, 3, 1, 2).float(), depth_of(batch.crops))


def test_the_colour_crops_are_those_of_pretraining(pairs: Path) -> None:
    """The depth beside them changes no random number."""
    source, sampler = open_depth(str(pairs), "train"), Sampler(5, 5, 7)
    one = next(Loader(source, sampler, size=24, views=1, seed=7, workers=1).epoch(2))
    both = next(DepthLoader(source, sampler, size=24, seed=7, workers=1).epoch(2))
    assert torch.equal(one.crops[:, 0], both.crops[:, 0]) and torch.equal(one.index, both.index)


def test_depth_is_the_nearest_pixels_and_keeps_every_bit(pairs: Path) -> None:
    """No mean of two pixels, so that missing depth makes none nearer; up to 65.534 m. 65,535 is none."""
    values = np.zeros((4, 4), np.uint16)
    values[1, 2], values[3, 3], values[0, 0] = 65_534, 258, 65_535
    path = next((pairs / "val").glob("*.depth.png"))
    Image.fromarray(values).save(path)
    source = open_depth(str(pairs), "val")
    index = [str(source.name(i)).partition(".color")[0] for i in range(3)].index(str(path).partition(".depth")[0])
    whole = DepthLoader(source, Sampler(3, 3, 0, shuffle=False), size=4, eval_crop=1.0, workers=1)
    depth = depth_of(next(whole.epoch(0)).crops)[index]
    assert set(depth.unique().tolist()) <= {0.0, np.float32(65.534), np.float32(0.258)}
    assert depth[1].max() == np.float32(65.534) and depth[0, 0] == 0


def test_what_turns_pixels_otherwise_is_refused(pairs: Path) -> None:
    batch = next(DepthLoader(open_depth(str(pairs), "val"), Sampler(3, 3, 0), size=8, workers=1).epoch(0))
    with pytest.raises(ValueError, match="not rotated"):
        augmented_pairs(batch, Augment(RECIPES["digits"], 0), 0)


def broken(folder: Path, what: str) -> str:
    """A copy of the layout with one fault; returns the path to give."""
    if what in ("no depth", "8 bits", "no image", "another shape"):
        write_pairs(folder / "train", 2, 0)
        depth = sorted((folder / "train").glob("*.depth.png"))[0]
        if what == "8 bits":
            Image.new("RGB", (WIDTH, HEIGHT)).save(depth)
        elif what == "another shape":
            Image.fromarray(np.ones((HEIGHT, HEIGHT), np.uint16)).save(depth)
        elif what == "no depth":
            depth.unlink()
        else:
            depth.write_bytes(b"not a picture")
        return str(folder)
    write_nyu(folder)
    labelled, splits = folder / "nyu_depth_v2_labeled.mat", folder / "splits.mat"
    if what == "text":
        labelled.write_text("MATLAB")
    elif what == "no splits":
        splits.unlink()
    elif what == "split text":
        splits.write_text("MATLAB")
    elif what == "no images":
        with h5py.File(labelled, "w") as file:
            file["depths"] = np.zeros((7, 2, 2))
    elif what == "other shapes":
        with h5py.File(labelled, "w") as file:
            file["images"], file["depths"] = np.zeros((7, 3, 4, 4), np.uint8), np.zeros((7, 5, 4), np.float32)
    elif what == "few frames":
        with h5py.File(labelled, "w") as file:
            file["images"], file["depths"] = np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 4, 4), np.float32)
    return str(folder)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("text", "is damaged, or no MATLAB file of version 7.3: download it again"),
        ("no splits", r"no .*splits.mat: NYU-Depth-V2's splits.mat says which frames"),
        ("split text", "does not hold trainNdxs: download it again"),
        ("no images", "lacks `images` or `depths`"),
        ("other shapes", r"images \[7, 3, 4, 4\] and depths \[7, 5, 4\]"),
        ("few frames", "names frames 1 to 7 of 2 in nyu_depth_v2_labeled.mat"),
        ("no depth", r"1 images in .* have no depth, the first is .*add .*depth.png"),
    ],
)
def test_a_broken_layout_is_told_at_the_start(tmp_path: Path, what: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_depth(broken(tmp_path / what, what), "train")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("8 bits", "must be a grey PNG of 16 bits"),
        ("no image", "its depth .*png"),
        ("another shape", "its depth has another shape than it: the depth is 48 x 48 px, the image 64 x 48"),
    ],
)
def test_a_depth_that_cannot_be_read_is_named(tmp_path: Path, what: str, said: str) -> None:
    source: DepthSource = open_depth(broken(tmp_path, what), "train")
    with pytest.raises(InputError, match=rf"image 0 .*color.*{said}.*--skip-bad-images"):
        next(DepthLoader(source, Sampler(2, 2, 0, shuffle=False), size=8, workers=1).epoch(0))
    loader = DepthLoader(source, Sampler(2, 2, 0, shuffle=False), size=8, workers=1, skip_bad_images=True)
    assert next(loader.epoch(0)).index.tolist() == [1, 1]


def test_what_is_not_there(tmp_path: Path, nyu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, split, said in (
        (str(tmp_path / "nowhere.mat"), "train", "no file .*nowhere.mat|no .*splits.mat"),
        (str(tmp_path / "nowhere"), "train", "neither nyu_depth_v2_labeled.mat nor a folder train of pairs"),
        (None, "train", "--dataset nyu-depth needs the folder"),
    ):
        with pytest.raises(InputError, match=said):
            open_depth(data, split)
    with pytest.raises(InputError, match="has no classes: measure it with python"):
        open_split(str(nyu), "nyu-depth", "train")
    monkeypatch.setitem(sys.modules, "h5py", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"h5py, which is not installed; pip install h5py"):
        open_depth(str(nyu), "train")
