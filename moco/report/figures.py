"""Figures of runs: training curves from their logs, and what their features look like on paper.

Figures are drawn on `Figure` objects, never through pyplot, so nothing global is touched and no display is needed.
Colours are Okabe & Ito's and Tol's, which people with any of the usual colour blindnesses can tell apart; classes carry
their name as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE

from moco.report.runs import Records

# Okabe & Ito (2008), in the order the runs are given
RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Tol's "muted" scheme, its grey last
CLASS_COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB",
)  # fmt: skip
INK, FAINT = "#222222", "#8A8A8A"


@dataclass(frozen=True)
class Pictured:
    """One encoder of a comparison. The log of an untrained one holds an evaluation at most: it is the baseline."""

    name: str
    records: Records
    features: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))  # [n, d], unit norm
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # [n]
    caption: str = ""  # results in one line

    @property
    def trained(self) -> bool:
        return any(record.get("kind") == "train" for record in self.records)


def series(records: Records, kind: str, value: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs done, mean value over that epoch's records of `kind`); records without a finite `value` are left out."""
    found: dict[int, list[float]] = {}
    for record in records:
        if record.get("kind") == kind and isinstance(record.get(value), (int, float)) and np.isfinite(record[value]):
            found.setdefault(int(record["epoch"]) + 1, []).append(float(record[value]))
    epochs = sorted(found)
    return np.array(epochs), np.array([np.mean(found[epoch]) for epoch in epochs])


def project(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE to the plane, float32 [n, 2]; it starts from the principal components, so runs look alike."""
    perplexity = min(30.0, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", metric="cosine", random_state=seed).fit_transform(features)


def curves(encoders: Sequence[Pictured], path: str | Path) -> Path:
    """Writes one PNG of the runs' curves: losses, kNN, and the way through the plane of alignment and uniformity."""
    figure = Figure(figsize=(13, 4.2), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    _curves(figure, encoders, _colours(encoders))
    return write_figure(figure, path)


def comparison(encoders: Sequence[Pictured], classes: Sequence[str], title: str, path: str | Path) -> Path:
    """Writes one PNG: the runs' curves above, every encoder's features below, in the order given."""
    colours = _colours(encoders)
    figure = Figure(figsize=(13, 8.6), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    figure.suptitle(title, fontsize=15, color=INK, x=0.012, ha="left", weight="bold")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.12), squeeze=False)[:, 0]
    _curves(above, encoders, colours)
    panels = below.subplots(1, len(encoders), squeeze=False)[0]
    for axes, encoder in zip(panels, encoders, strict=True):
        _features(axes, encoder, classes, colours.get(encoder.name, INK))
    return write_figure(figure, path)


def _colours(encoders: Sequence[Pictured]) -> dict[str, str]:
    return dict(zip((encoder.name for encoder in encoders if encoder.trained), cycle(RUN_COLOURS), strict=False))


def write_figure(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _curves(place: FigureBase, encoders: Sequence[Pictured], colours: Mapping[str, str]) -> None:
    trained = [encoder for encoder in encoders if encoder.trained]
    columns = place.subfigures(1, 3, squeeze=False)[0]
    _losses(columns[0].subplots(max(1, len(trained)), 1, sharex=True, squeeze=False)[:, 0], trained, colours)
    _knn(columns[1].subplots(), encoders, colours)
    _sphere(columns[2].subplots(), encoders, colours)


def plain_axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)


def _losses(rows: Sequence[Axes], trained: Sequence[Pictured], colours: Mapping[str, str]) -> None:
    """One panel each: losses of different heads have no common scale."""
    for place, (axes, encoder) in enumerate(zip(rows, trained, strict=False)):
        axes.plot(*series(encoder.records, "epoch", "loss"), color=colours[encoder.name], linewidth=2)
        plain_axes(axes, "Training loss" if place == 0 else "", "epoch" if place == len(rows) - 1 else "", "loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(encoder.name, loc="right", fontsize=10, weight="bold", color=colours[encoder.name])


def _knn(axes: Axes, encoders: Sequence[Pictured], colours: Mapping[str, str]) -> None:
    """The panels on both sides name the colours: a legend here would lie on a curve."""
    for encoder in encoders:
        epochs, values = series(encoder.records, "eval", "knn_top1")
        if encoder.trained:
            axes.plot(
                epochs, values, "o-", color=colours[encoder.name], linewidth=2, markersize=4.5, label=encoder.name
            )
        elif len(values):
            axes.axhline(values[-1], color=FAINT, linewidth=1.5, linestyle="--")
            corner = axes.get_yaxis_transform()
            axes.text(0.99, values[-1], encoder.name, transform=corner, ha="right", va="bottom", color=FAINT)
    plain_axes(axes, "Validation kNN while training", "epoch", "top-1 [%]")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.1)


def _sphere(axes: Axes, encoders: Sequence[Pictured], colours: Mapping[str, str]) -> None:
    """Wang & Isola's plane, where less is better on both axes: each run's way through it; the dots grow in time."""
    for encoder in encoders:
        _, align = series(encoder.records, "eval", "val_alignment")
        _, uniform = series(encoder.records, "eval", "val_uniformity")
        if not len(align) or len(align) != len(uniform):
            continue
        colour, size = colours.get(encoder.name, FAINT), 50.0
        axes.plot(align, uniform, color=colour, linewidth=1.2, alpha=0.6)
        sizes = np.linspace(size / 5, size, len(align)) if encoder.trained else size
        axes.scatter(align, uniform, s=sizes, color=colour, marker="o" if encoder.trained else "X", zorder=3)
        axes.scatter([], [], s=size, color=colour, marker="o" if encoder.trained else "X", label=encoder.name)
    title = "Alignment and uniformity (validation)"
    plain_axes(axes, title, "alignment  ← closer positives", "uniformity  ← more spread out")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.margins(0.1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True, edgecolor="white", framealpha=0.8, labelcolor="linecolor", handletextpad=0.2)


def _features(axes: Axes, encoder: Pictured, classes: Sequence[str], colour: str) -> None:
    points = project(encoder.features)
    for number, name in enumerate(classes):
        mine = points[encoder.labels == number]
        if not len(mine):
            continue
        shade = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        axes.scatter(mine[:, 0], mine[:, 1], s=15, color=shade, alpha=0.85, linewidths=0)
        if len(classes) <= len(CLASS_COLOURS):
            # a point of the class, not the empty place between two clumps of it
            x, y = mine[np.argmin(np.abs(mine - np.median(mine, 0)).sum(1))]
            axes.text(x, y, name, ha="center", va="center", fontsize=13, weight="bold", color=INK,
                      path_effects=[patheffects.withStroke(linewidth=3.5, foreground="white")])  # fmt: skip
    axes.set_title(encoder.name, loc="left", fontsize=11.5, weight="bold", color=colour)
    axes.set_xlabel(encoder.caption, fontsize=10, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_color("#DDDDDD")
