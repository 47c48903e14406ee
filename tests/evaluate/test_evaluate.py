"""The command end to end on made-up images: its table and file, every measure recomputed here, and every bad input."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from moco import metrics
from moco.data.augment.recipes import find_recipe
from moco.data.datasets import open_split
from moco.encoders import build_encoder, trunk
from moco.errors import EXIT_INPUT, EXIT_OK
from moco.evaluate import __main__ as evaluate
from moco.metrics import geometry
from moco.metrics.table import OF_FEATURES
from tests.probe.test_main import CLASSES, pretrained_state, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def write_checkpoint(path: Path, prefix: str = "module.encoder_q.", **more: Any) -> Path:
    state = {f"{prefix}{name}": value for name, value in pretrained_state().items()}
    torch.save({"epoch": 200, "arch": "smallcnn", "state_dict": state, **more}, path)
    return path


def call(checkpoint: Path, data: Path, *words: str) -> int:
    return evaluate.main([str(checkpoint), str(data), "--image-size", "8", "-j", "1", "--knn-k", "5", *words])


def measured(checkpoint: Path, data: Path, out: Path, *words: str) -> dict[str, Any]:
    assert call(checkpoint, data, "--json", str(out), *words) == EXIT_OK
    return json.loads(out.read_text())


def test_every_measure_is_that_of_the_features(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"options": {"dataset": "folder", "recipe": "cifar", "loss": "infonce"}, "git": "abc"}
    path, words = write_checkpoint(tmp_path / "c.pth.tar", moco_run=run), ("--bins", "8", "--image-size", "12")
    found = measured(path, images, tmp_path / "m.json", *words)
    table = capsys.readouterr().out
    assert found["schema"] == 1
    about = found["checkpoint"]
    assert (about["arch"], about["epoch"], about["git"]) == ("smallcnn", 200, "abc")
    assert about["options"] == run["options"]
    assert found["data"] == {"dataset": "folder", "images": 9, "train_images": 21, "classes": list(CLASSES)}
    assert found["settings"]["recipe"] == "cifar"  # the run's

    encoder = build_encoder("smallcnn", 6).eval()
    encoder.load_state_dict(pretrained_state())
    recipe = find_recipe("cifar")  # its pictures are shown whole, and these are of 12 px
    features: dict[str, list[torch.Tensor]] = {}
    labels = []
    for split in ("train", "val"):
        source = open_split(str(images), "folder", split)
        x = torch.from_numpy(np.stack([source.decode(i) for i in range(len(source))])).permute(0, 3, 1, 2).float() / 255
        x = (x - torch.tensor(recipe.mean).view(3, 1, 1)) / torch.tensor(recipe.std).view(3, 1, 1)
        with torch.no_grad():
            for name, network in (("trunk", trunk(encoder)), ("output", encoder)):
                features.setdefault(name, []).append(normalize(network(x), dim=1))
        labels.append(torch.from_numpy(source.labels))
    assert list(found["spaces"]) == ["trunk", "output"]
    for name, (bank, x) in features.items():
        space, y = found["spaces"][name], labels[1]
        got = space["measures"]
        assert space["dim"] == x.shape[1]
        assert space["reasons"] == {}
        assert got["knn_top1"] == pytest.approx(metrics.knn_accuracy(bank, labels[0], x, y, 3, k=5).item())
        assert got["uniformity"] == pytest.approx(metrics.uniformity(x).item(), rel=1e-3)
        assert space["uniformity_bounds"] == list(metrics.uniformity_bounds(x.shape[1]))
        assert got["tolerance"] == pytest.approx(metrics.tolerance(x, y).item(), rel=1e-4)
        assert got["effective_rank"] == pytest.approx(metrics.effective_rank(x).item(), rel=1e-3)
        collapse = geometry.class_collapse(x, y)
        for measure in ("within_between", "own_mean_cosine", "simplex_cosine", "simplex_deviation"):
            assert got[measure] == pytest.approx(getattr(collapse, measure), rel=1e-3)
        assert space["simplex_target"] == -0.5
        # alignment is 2 - 2 × the mean similarity of positives
        assert got["alignment"] == pytest.approx(2 - 2 * got["positive_similarity"], rel=1e-4)
        bars = space["histograms"]
        assert bars["edges"] == np.linspace(-1, 1, 9).tolist()
        assert [sum(bars[kind]) for kind in ("positive", "negative", "same_class")] == [9, 72, 18]
        middle = (np.array(bars["edges"][1:]) + bars["edges"][:-1]) / 2
        for kind in ("positive", "negative"):
            mean = float(np.average(middle, weights=bars[kind]))
            assert got[f"{kind}_similarity"] == pytest.approx(mean, abs=0.125)
    output = found["spaces"]["output"]
    line = next(line for line in table.splitlines() if line.startswith("uniformity"))
    assert f"({output['uniformity_bounds'][0]:.4g})" in line
    assert f"{output['measures']['uniformity']:.4g}" in line
    assert all(row.heading in table for row in OF_FEATURES.values())


def test_views_and_measures_are_a_function_of_the_seed(images: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c.pth.tar")
    first, again, other = (
        measured(path, images, tmp_path / f"{i}.json", "--seed", seed)["spaces"] for i, seed in enumerate("112")
    )
    assert first == again
    assert first["trunk"]["measures"]["alignment"] != other["trunk"]["measures"]["alignment"]
    assert first["trunk"]["measures"]["uniformity"] == other["trunk"]["measures"]["uniformity"]


def test_options_reach_their_measures(images: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "c.pth.tar")
    words = ("--unif-t", "3", "--align-alpha", "1", "--features-from", "features.2")
    found = measured(path, images, tmp_path / "m.json", *words)
    plain = measured(path, images, tmp_path / "p.json", "--features-from", "features.2")
    space, usual = found["spaces"]["features.2"], plain["spaces"]["features.2"]
    assert (space["dim"], list(found["spaces"])) == (32 * 4 * 4, ["features.2"])
    assert space["uniformity_bounds"][0] == pytest.approx(metrics.uniformity_bounds(512, 3)[0])
    assert space["measures"]["uniformity"] < usual["measures"]["uniformity"]
    assert 0.9 < space["measures"]["alignment"] / usual["measures"]["alignment"] ** 0.5 < 1  # E d < √(E d²)


def without_classes(images: Path, folder: Path) -> Path:
    (folder / "val").mkdir()
    for i, path in enumerate(sorted(images.glob("val/*/*.png"))):
        shutil.copy(path, folder / "val" / f"{i}.png")
    return folder


def of_one_class(images: Path, folder: Path) -> Path:
    return write_images(folder, CLASSES[:1])


def without_train(images: Path, folder: Path) -> Path:
    shutil.copytree(images / "val", folder / "val")
    return folder


LABELLED = {"knn_top1", "tolerance", "within_between", "own_mean_cosine", "simplex_cosine", "simplex_deviation"}


@pytest.mark.parametrize(
    ("make", "missing", "says"),
    [
        (without_classes, LABELLED, "kNN needs labels"),
        (of_one_class, LABELLED - {"tolerance"}, "kNN needs two classes, but the data has one"),
        (without_train, {"knn_top1"}, "kNN needs labelled training images"),
    ],
)
def test_what_does_not_exist_has_a_reason_and_no_number(
    make: Callable[[Path, Path], Path],
    missing: set[str],
    says: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    found = measured(write_checkpoint(tmp_path / "c.pth.tar"), make(images, data), tmp_path / "m.json")
    for space in found["spaces"].values():
        assert {name for name, value in space["measures"].items() if value is None} == missing == set(space["reasons"])
        assert all(math.isfinite(value) for value in space["measures"].values() if value is not None)
        assert (space["histograms"]["same_class"] is None) == (make is without_classes)
    out = capsys.readouterr().out
    assert says in out
    assert "–" in next(line for line in out.splitlines() if line.startswith("kNN top-1"))


def test_fewer_images_than_neighbours_are_told(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(write_checkpoint(tmp_path / "c.pth.tar"), images, "--knn-k", "200") == EXIT_OK
    assert "k is 21, not 200: there are no more training images" in capsys.readouterr().out


def with_nan(path: Path) -> Path:
    state = torch.load(write_checkpoint(path), weights_only=True)
    state["state_dict"]["module.encoder_q.features.0.weight"][0, 0, 0, 0] = math.nan
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("make", "words", "says"),
    [
        (lambda path: path, (), "there is no checkpoint"),
        (with_nan, (), "not finite"),
        (write_checkpoint, ("--features-from", "layer9"), "no such layer"),
        (lambda path: write_checkpoint(path, "module."), ("--features-from", "output"), "holds no projection head"),
        (write_checkpoint, ("--knn-t", "0"), "--knn-t must be greater than 0"),
        (write_checkpoint, ("--recipe", "v3"), "unknown augmentation recipe"),
    ],
)
def test_bad_input_is_one_sentence(
    make: Callable[[Path], Path],
    words: tuple[str, ...],
    says: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(make(tmp_path / "c.pth.tar"), images, "--json", str(tmp_path / "m.json"), *words) == EXIT_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert says in error
    assert not (tmp_path / "m.json").exists()


def test_features_that_are_not_finite_end_the_command(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite weights can still overflow."""
    state = pretrained_state()
    state["features.0.weight"] *= 1e38
    state["features.1.weight"] *= 1e38
    prefixed = {f"module.encoder_q.{name}": value for name, value in state.items()}
    torch.save({"arch": "smallcnn", "state_dict": prefixed}, tmp_path / "c.pth.tar")
    assert call(tmp_path / "c.pth.tar", images) == 3
    assert "features are not finite" in capsys.readouterr().err
