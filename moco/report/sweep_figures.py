"""The papers' figures as PNGs: the plane of alignment and uniformity, what the temperature does, who is pushed away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from moco.losses.theory import gradient_shares
from moco.report.comparison import TemperatureCurve
from moco.report.figures import FAINT, INK, RUN_COLOURS, plain_axes, write_figure
from moco.report.plots import colour
from moco.report.runs import COLLAPSE, DONE, MEASURED, MEASURES, OTHER, Encoder

MARKERS = {DONE: "o", COLLAPSE: "D", OTHER: "s"}
SHAPES = {DONE: "circle", COLLAPSE: "diamond", OTHER: "square"}
TEMPERATURES = (0.07, 0.2, 0.5, 1.0)  # where no run tells which


def plane(encoders: Sequence[Encoder], measure: str, path: str | Path) -> Path:
    """Writes Wang & Isola's central figure: a dot for each measured encoder, coloured by its `measure`; hollow
    without it, and if it cannot be compared."""
    figure = Figure(figsize=(7.2, 5.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    shown = [one for one in encoders if one.state in MEASURED]
    values = [one.measured[measure] for one in shown if one.compared and measure in one.measured]
    limits = dict(vmin=min(values, default=0), vmax=max(values, default=1))
    colours = ListedColormap([colour(i / 255) for i in range(256)])
    for state, marker in MARKERS.items():
        mine = [one for one in shown if one.state == state]
        for filled in (True, False):
            some = [one for one in mine if (one.compared and measure in one.measured) == filled]
            x, y = ([one.measured[name] for one in some] for name in ("val_alignment", "val_uniformity"))
            paint = (
                dict(c=[one.measured[measure] for one in some], cmap=colours, **limits)
                if filled
                else dict(facecolors="none")
            )
            axes.scatter(x, y, s=62, marker=marker, edgecolors=INK, linewidths=0.7, zorder=3, **paint)
        if mine:
            key = "none" if state == OTHER else FAINT
            axes.scatter([], [], s=62, marker=marker, facecolors=key, edgecolors=INK, linewidths=0.7, label=state)
    plain_axes(
        axes,
        "Alignment and uniformity on validation data",
        "alignment  ← closer positives",
        "uniformity  ← more spread out",
    )
    axes.margins(0.06)
    if len({one.state for one in shown}) > 1:
        axes.legend(frameon=False, labelcolor=INK)
    if values:
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(limits["vmin"], limits["vmax"]), colours)
        bar = figure.colorbar(scale, ax=axes, label=MEASURES[measure])
        bar.outline.set_visible(False)
    return write_figure(figure, path)


def temperatures(curves: Sequence[TemperatureCurve], measures: Sequence[str], path: str | Path) -> Path:
    """Writes one panel for each measure against the temperature, as Wang & Liu (2021) do: a line for each curve, the
    mean over seeds, and a dot for each encoder."""
    figure = Figure(figsize=(4.3 * len(measures), 3.9), dpi=150, layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for number, curve in enumerate(curves):
            shade = RUN_COLOURS[number % len(RUN_COLOURS)]
            axes.plot(*curve.points(measure), color=shade, linewidth=2, label=curve.label or "InfoNCE")
            some = [one for one in curve.encoders if measure in one.measured]
            axes.plot(
                [one.temperature for one in some], [one.measured[measure] for one in some], "o", color=shade, ms=5
            )
        plain_axes(axes, MEASURES[measure], "temperature τ", "")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    return write_figure(figure, path)


def shares_of_uniform(temperature: float, count: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """(similarities, penalty relative to the mean) [count] of an anchor whose negatives lie evenly in [-1, 1]."""
    similarities = torch.linspace(-1, 1, count, dtype=torch.float64)
    return similarities.numpy(), (gradient_shares(similarities, temperature) * count).numpy()


def penalties(values: Sequence[float], path: str | Path) -> Path:
    """Writes the gradient's share of each negative by its similarity, a line for each temperature (Wang & Liu)."""
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, temperature in enumerate(values):
        shade = RUN_COLOURS[number % len(RUN_COLOURS)]
        axes.plot(*shares_of_uniform(temperature), color=shade, linewidth=2, label=f"τ = {temperature:g}")
    plain_axes(axes, "Which negatives are pushed away", "similarity to the anchor", "push, relative to the mean")
    axes.set_yscale("log")
    axes.set_ylim(1e-4)
    axes.legend(frameon=False, labelcolor=INK)
    return write_figure(figure, path)
