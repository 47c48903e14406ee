"""Figures: what is read from a log, and that a figure is drawn from little as from much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moco.report.figures import Pictured, comparison, project, series, training
from moco.report.plots import RUN_COLOURS, colour
from moco.report.runs import Encoder


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


def runs(count: int) -> list[Encoder]:
    records = [{"kind": kind, "epoch": e, "loss": 4.0 - e} for e in range(2) for kind in ("train", "epoch")]
    values = {"val_alignment": 0.5, "val_uniformity": -1.0}
    return [
        Encoder(
            f"_{i}",
            Path(),
            records=[*records, *({"kind": "eval", "epoch": e, "knn_top1": 50.0 + i + e, **values} for e in range(2))],
        )
        for i in range(count)
    ]


def test_few_runs_have_their_own_colours_and_a_legend() -> None:
    (knn, way), (loss,) = training(runs(2))
    lines: Any = knn.figure.axes[0].lines
    assert [line.get_color() for line in lines] == list(RUN_COLOURS[:2])
    assert lines[1].get_ydata().tolist() == [51, 52]
    assert len(way.figure.axes[0].lines) == 2 and len(loss.figure.axes) == 2
    assert [text.get_text() for text in knn.figure.legends[0].get_texts()] == ["_0", "_1"]
    assert knn.marks["run-1"]["data-name"] == "_1" and 'data-name="_1"' in knn.svg()


def test_many_runs_have_the_colours_of_their_accuracy() -> None:
    some = runs(8)
    some[3].state = "unfinished"
    (knn, _), losses = training(some)
    shades = [line.get_color() for line in knn.figure.axes[0].lines]
    assert shades[0] == colour(0) and shades[7] == colour(1) and not knn.figure.legends
    assert [(one.name, len(one.figure.axes)) for one in losses] == [("loss", 6), ("loss-2", 2)]
    assert losses[0].figure.axes[3].get_title(loc="left") == "_3 (unfinished)"


def test_single_evaluations_make_no_curves() -> None:
    """Each run is one point in the table and in the plane already."""
    some = runs(2)
    for one in some:
        last = [record for record in one.records if record["kind"] == "eval"][-1]
        one.records = [record for record in one.records if record["kind"] != "eval"] + [last]
    together, losses = training(some)
    assert together == [] and len(losses) == 1


def test_runs_without_evaluations() -> None:
    (one,) = runs(1)
    one.records = [record for record in one.records if record["kind"] != "eval"]
    together, losses = training([one])
    assert together == [] and len(losses) == 1
    assert training([Encoder("none", Path())]) == ([], [])
