"""Draws figures of runs: training curves, and features in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE

from moco.metrics.table import LOGGED
from moco.report.plots import (
    CLASS_COLOURS,
    FAINT,
    INK,
    RUN_COLOURS,
    Plot,
    colour,
    figure,
    legend,
    plain_axes,
    shares,
    write_figure,
)
from moco.report.runs import DONE, KNN, Encoder, Records

AT_ONCE = len(RUN_COLOURS)  # runs with different colours in a figure


@dataclass(frozen=True)
class Pictured:
    """Holds one encoder of a comparison.

    An untrained encoder is the baseline; its log holds at most an evaluation.
    """

    name: str
    records: Records
    features: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))  # [n, d], unit norm
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [n]
    caption: str = ""  # results in one line

    @property
    def trained(self) -> bool:
        return any(record.get("kind") == "train" for record in self.records)


def series(records: Records, kind: str, value: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epochs done, mean of `value` over each epoch's records of `kind`).

    Records without a finite `value` are left out.
    """
    found: dict[int, list[float]] = {}
    for record in records:
        if record.get("kind") == kind and isinstance(record.get(value), (int, float)) and np.isfinite(record[value]):
            found.setdefault(int(record["epoch"]) + 1, []).append(float(record[value]))
    epochs = sorted(found)
    return np.array(epochs), np.array([np.mean(found[epoch]) for epoch in epochs])


def project(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Projects features [n, d] to the plane by t-SNE: float32 [n, 2].

    It starts from the principal components, so that figures of several runs can be compared.
    """
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", metric="cosine", random_state=seed).fit_transform(features)


def training(encoders: Sequence[Encoder]) -> tuple[list[Plot], list[Plot]]:
    """Draws training curves: (kNN and alignment-uniformity of all runs, losses).

    A figure of losses shows six runs. A figure of evaluations is left out if no run has two. With more than six runs in
    a figure, colours show the last kNN accuracies.
    """
    shown = [one for one in encoders if one.trained]
    names = [one.name if one.state == DONE else f"{one.name} ({one.state})" for one in shown]
    runs = [Pictured(name, one.records) for name, one in zip(names, shown, strict=True)]
    colours = _colours(runs)
    marks = {f"run-{i}": {"class": "run", "data-name": one.name, "data-tip": one.name} for i, one in enumerate(shown)}
    together = []
    losses = []
    for name, draw, label in (
        ("knn", _knn, "kNN accuracy while training"),
        ("way", _sphere, "alignment and uniformity while training"),
    ):
        drawn, axes = figure(5, 4.2)
        draw(axes, runs, colours)
        if len(runs) <= AT_ONCE:
            legend(axes)
        if any(np.size(line.get_xdata()) > 1 for line in axes.lines):
            together.append(Plot(name, drawn, label, marks))
    finished = [one for one in runs if len(series(one.records, "epoch", "loss")[0])]
    for start in range(0, len(finished), AT_ONCE):
        group = finished[start : start + AT_ONCE]
        drawn = Figure(figsize=(4.6, 1 + 1.2 * len(group)), dpi=200, layout="constrained")
        _losses(list(drawn.subplots(len(group), 1, sharex=True, squeeze=False)[:, 0]), group, colours)
        name = "loss" if start == 0 else f"loss-{start // AT_ONCE + 1}"
        losses.append(Plot(name, drawn, f"loss of {', '.join(one.name for one in group)}"))
    return together, losses


def comparison(encoders: Sequence[Pictured], classes: Sequence[str], title: str, path: str | Path) -> Path:
    """Writes one PNG: the runs' curves above, the encoders' features below."""
    colours = _colours(encoders)
    drawn = Figure(figsize=(13, 8.6), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    drawn.suptitle(title, fontsize=15, color=INK, x=0.012, ha="left", weight="bold")
    above, below = drawn.subfigures(2, 1, height_ratios=(1, 1.12), squeeze=False)[:, 0]
    trained = [encoder for encoder in encoders if encoder.trained]
    columns = above.subfigures(1, 3, squeeze=False)[0]
    _losses(list(columns[0].subplots(max(1, len(trained)), 1, sharex=True, squeeze=False)[:, 0]), trained, colours)
    _knn(columns[1].subplots(), encoders, colours)
    axes = columns[2].subplots()
    _sphere(axes, encoders, colours)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True, edgecolor="white", framealpha=0.8, labelcolor="linecolor", handletextpad=0.2)
    panels = below.subplots(1, len(encoders), squeeze=False)[0]
    for axes, encoder in zip(panels, encoders, strict=True):
        _features(axes, encoder, classes, colours.get(encoder.name, INK))
    return write_figure(drawn, path)


def _colours(encoders: Sequence[Pictured]) -> dict[str, str]:
    """Returns the colour of each run, by name.

    With more runs than colours it shows the last kNN accuracy; grey if there is none.
    """
    trained = [encoder for encoder in encoders if encoder.trained]
    if len(trained) <= AT_ONCE:
        return dict(zip((encoder.name for encoder in trained), RUN_COLOURS, strict=False))
    ends = {one.name: values[-1] for one in trained if len(values := series(one.records, "eval", KNN)[1])}
    shades = [colour(share) for share in shares(ends.values())]
    return dict.fromkeys((encoder.name for encoder in trained), FAINT) | dict(zip(ends, shades, strict=True))


def _losses(rows: Sequence[Axes], trained: Sequence[Pictured], colours: Mapping[str, str]) -> None:
    """Draws one panel per run, because different losses have no common scale."""
    for place, (axes, encoder) in enumerate(zip(rows, trained, strict=False)):
        epochs, values = series(encoder.records, "epoch", "loss")
        axes.plot(epochs, values, "-" if len(epochs) > 1 else "o", color=colours[encoder.name], linewidth=2)
        plain_axes(axes, encoder.name, "epoch" if place == len(rows) - 1 else "", "loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _knn(axes: Axes, encoders: Sequence[Pictured], colours: Mapping[str, str]) -> None:
    few = len(encoders) <= AT_ONCE
    for number, encoder in enumerate(encoders):
        epochs, values = series(encoder.records, "eval", KNN)
        if encoder.trained and len(values):
            look: dict[str, Any] = dict(color=colours[encoder.name], linewidth=2, markersize=4.5, label=encoder.name)
            axes.plot(epochs, values, "o-" if few or len(values) == 1 else "-", gid=f"run-{number}", **look)
        elif len(values):
            axes.axhline(values[-1], color=FAINT, linewidth=1.5, linestyle="--")
            corner = axes.get_yaxis_transform()
            axes.text(0.99, values[-1], encoder.name, transform=corner, ha="right", va="bottom", color=FAINT)
    plain_axes(axes, "Validation kNN while training", "epoch", LOGGED[KNN].heading)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.1)


def _sphere(axes: Axes, encoders: Sequence[Pictured], colours: Mapping[str, str]) -> None:
    """Draws each run's path of alignment and uniformity.

    Dots grow with time. Lower is better on both axes.
    """
    for number, encoder in enumerate(encoders):
        _, align = series(encoder.records, "eval", "val_alignment")
        _, uniform = series(encoder.records, "eval", "val_uniformity")
        if not len(align) or len(align) != len(uniform):
            continue
        look: dict[str, Any] = dict(color=colours.get(encoder.name, FAINT), marker="o" if encoder.trained else "X")
        axes.plot(align, uniform, color=look["color"], linewidth=1.2, alpha=0.6, gid=f"run-{number}")
        axes.scatter(align, uniform, s=np.linspace(10, 50, len(align)) if encoder.trained else 50, zorder=3, **look)
        axes.scatter([], [], s=50, label=encoder.name, **look)
    title = "Alignment and uniformity (validation)"
    plain_axes(axes, title, "alignment  ← closer positives", "uniformity  ← more spread out")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(0.1)


def _features(axes: Axes, encoder: Pictured, classes: Sequence[str], colour: str) -> None:
    points = project(encoder.features)
    for number, name in enumerate(classes):
        mine = points[encoder.labels == number]
        if not len(mine):
            continue
        shade = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        axes.scatter(mine[:, 0], mine[:, 1], s=15, color=shade, alpha=0.85, linewidths=0)
        if len(classes) <= len(CLASS_COLOURS):
            # a point of the class, not an empty place between two of its groups
            x, y = mine[np.argmin(np.abs(mine - np.median(mine, 0)).sum(1))]
            axes.text(x, y, name, ha="center", va="center", fontsize=13, weight="bold", color=INK,
                      path_effects=[patheffects.withStroke(linewidth=3.5, foreground="white")])  # fmt: skip
    axes.set_title(encoder.name, loc="left", fontsize=11.5, weight="bold", color=colour)
    axes.set_xlabel(encoder.caption, fontsize=10, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_color("#DDDDDD")
