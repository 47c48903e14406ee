"""Figures: what is read from a log, and that a figure is drawn from little as from much."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco.report import Pictured, comparison, main, project, series


def features(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    x = np.eye(3, 8)[labels] + 0.05 * draw.normal(size=(n, 8))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def test_series_is_the_mean_of_each_epoch() -> None:
    records = [
        {"kind": "start"},
        {"kind": "train", "epoch": 0, "loss": 4.0},
        {"kind": "train", "epoch": 0, "loss": 2.0},
        {"kind": "train", "epoch": 1, "loss": float("nan")},
        {"kind": "eval", "epoch": 1, "loss": 7.0},
        {"kind": "train", "epoch": 2, "loss": 1.0},
    ]
    epochs, values = series(records, "train", "loss")
    assert epochs.tolist() == [1, 3]
    assert values.tolist() == [3.0, 1.0]


def test_projection_keeps_classes_together_and_repeats_itself() -> None:
    x, labels = features(60, seed=0)
    points = project(x)
    assert points.shape == (60, 2)
    centres = np.stack([points[labels == c].mean(0) for c in range(3)])
    nearest = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
    assert (nearest == labels).all()
    assert (project(x) == points).all()


def test_comparison_draws_trained_and_untrained(tmp_path: Path) -> None:
    values = {"knn_top1": 90.0, "val_alignment": 0.4, "val_uniformity": -2.0}
    logs = [{"kind": kind, "epoch": e, "loss": 1.0 / (e + 1)} for e in range(3) for kind in ("train", "epoch")]
    logs += [{"kind": "eval", "epoch": e, **values} for e in range(3)]
    encoders = [
        Pictured("untrained", [{"kind": "eval", "epoch": -1, **values}], *features(30, 0), "kNN 90"),
        Pictured("InfoNCE", logs, *features(30, 1), "kNN 90"),
        Pictured("not evaluated", logs[:6], *features(30, 2), "kNN -"),
    ]
    path = comparison(encoders, ["a", "b", "c"], "a title", tmp_path / "new" / "figure.png")
    with Image.open(path) as picture:
        assert picture.size == (1950, 1290)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0, 114, 178), (213, 94, 0)} <= colours  # both runs are there, in their own colours


def test_comparison_without_any_training(tmp_path: Path) -> None:
    assert comparison(
        [Pictured("untrained", [], *features(12, 0), "")], ["a", "b", "c"], "", tmp_path / "f.png"
    ).exists()


def test_curves_of_runs_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"kind": "train", "epoch": 0, "loss": 4.0}, {"kind": "epoch", "epoch": 0, "loss": 4.0}]
    for name, records in (("one", lines), ("two", lines), ("none", [{"kind": "start"}]), ("again/one", lines)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figure = tmp_path / "figures" / "curves.png"
    one, two, none, again = (str(tmp_path / name) for name in ("one", "two", "none", "again/one"))
    assert main([one, two, "--output", str(figure)]) == 0
    with Image.open(figure) as image:
        assert image.size == (1950, 630)
    for runs, told in (([none], "no training step"), ([one, again], "same name"), ([one + "x"], "cannot read the log")):
        figure.unlink(missing_ok=True)
        assert main([*runs, "--output", str(figure)]) == 2
        assert told in capsys.readouterr().err
        assert not figure.exists()
