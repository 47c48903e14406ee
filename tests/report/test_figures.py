"""Figures: what is read from a log, and that a figure is drawn from little as from much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from moco.report.figures import Pictured, comparison, curves, project, series


def features(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    x = np.eye(3, 8)[labels] + 0.05 * draw.normal(size=(n, 8))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def test_series_is_the_mean_of_each_epoch() -> None:
    records: list[dict[str, object]] = [
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
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or ()}
    assert {(0, 114, 178), (213, 94, 0)} <= colours  # both runs are there, in their own colours


def test_comparison_without_any_training(tmp_path: Path) -> None:
    assert comparison(
        [Pictured("untrained", [], *features(12, 0), "")], ["a", "b", "c"], "", tmp_path / "f.png"
    ).exists()


def test_curves_of_two_runs(tmp_path: Path) -> None:
    records = [{"kind": kind, "epoch": e, "loss": 4.0 - e} for e in range(2) for kind in ("train", "epoch")]
    figure = curves([Pictured(name, records) for name in ("one", "two")], tmp_path / "figures" / "curves.png")
    with Image.open(figure) as image:
        assert image.size == (1950, 630)
