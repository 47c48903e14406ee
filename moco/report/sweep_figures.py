"""Draws the papers' figures: alignment-uniformity plane, temperature, penalties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from moco.losses.theory import gradient_shares
from moco.metrics.table import LOGGED
from moco.report.comparison import TemperatureCurve, tip
from moco.report.plots import FAINT, INK, RUN_COLOURS, Plot, colour, figure, legend, plain_axes, shares
from moco.report.runs import COLLAPSE, DONE, MEASURED, OTHER, Encoder

MARKERS = {DONE: "o", COLLAPSE: "D", OTHER: "s"}
TEMPERATURES = (0.07, 0.2, 0.5, 1.0)  # if no run has a temperature
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def plane(encoders: Sequence[Encoder], measure: str | None) -> Plot:
    """Draws Wang & Isola's central figure: a dot for each measured encoder.

    Its colour shows `measure`; it is hollow without one, or if the encoder cannot be compared. Hovering over a dot
    shows `tip`.
    """
    drawn, axes = figure(5, 4.8)
    shown = [one for one in encoders if one.state in MEASURED]
    coloured = [one for one in shown if one.compared and measure in one.measured]
    values = [one.measured[str(measure)] for one in coloured]
    fills = {one.name: colour(share) for one, share in zip(coloured, shares(values), strict=True)}
    marks = {}
    for number, one in enumerate(shown):
        at = one.measured["val_alignment"], one.measured["val_uniformity"]
        look: dict[str, Any] = dict(s=62, marker=MARKERS[one.state], edgecolors=INK, linewidths=1, zorder=3)
        axes.scatter(*at, facecolors=fills.get(one.name, "none"), gid=f"dot-{number}", **look)
        marks[f"dot-{number}"] = _dot(one)
    for state in MARKERS:
        if any(one.state == state for one in shown):
            fill = "none" if state == OTHER else FAINT
            axes.scatter([], [], s=62, marker=MARKERS[state], facecolors=fill, edgecolors=INK, label=state)
    if any(one.compared and one not in coloured for one in shown):
        of = LOGGED[measure].heading if measure else "accuracy"
        axes.scatter([], [], s=62, facecolors="none", edgecolors=INK, label=f"hollow: no {of}")
    plain_axes(axes, "", "alignment  ← closer positives", "uniformity  ← more spread out")
    axes.margins(0.06)
    legend(axes)
    if measure and values:
        # 40 colours: with matplotlib's own number the colour bar would become an image
        scale = ScalarMappable(Normalize(min(values), max(values)), ListedColormap([colour(i / 39) for i in range(40)]))
        bar = drawn.colorbar(scale, ax=axes, location="top", aspect=40)
        bar.set_label(LOGGED[measure].heading, color=INK)
        bar.ax.tick_params(colors=INK, labelsize=9)
        bar.outline.set_visible(False)
        for part in bar.ax.collections:
            part.set_edgecolor("face")  # no gaps between its colours
    return Plot("alignment-uniformity", drawn, "alignment against uniformity", marks)


def _dot(one: Encoder) -> dict[str, str]:
    """Returns attributes with which the page shows options on hover."""
    return {
        "class": "dot", "tabindex": "0", "role": "img", "aria-label": f"{one.name}: {one.state}",
        "data-name": one.name, "data-tip": tip(one),
    }  # fmt: skip


def published(measure: str, encoders: Sequence[Encoder]) -> Plot:
    """Draws each encoder's measured value against its published one.

    On the line both are equal.
    """
    drawn, axes = figure(4.4, 4.2)
    marks = {}
    for number, one in enumerate(encoders):
        at = one.published[measure], one.measured[measure]
        axes.scatter(*at, s=46, marker=MARKERS[one.state], color=RUN_COLOURS[0], zorder=3, gid=f"pair-{number}")
        marks[f"pair-{number}"] = _dot(one)
    ends = [of[measure] for one in encoders for of in (one.published, one.measured)]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=FAINT, linewidth=1, label="equal")
    plain_axes(axes, LOGGED[measure].heading, "published", "measured")
    legend(axes)
    return Plot(f"published-{measure}", drawn, f"{LOGGED[measure].heading}: measured against published", marks)


def temperatures(curves: Sequence[TemperatureCurve], measures: Sequence[str]) -> list[Plot]:
    """Draws each measure against the temperature, as in Wang & Liu (2021).

    A line for each curve (the mean over seeds), a dot for each encoder.
    """
    plots = []
    for measure in measures:
        drawn, axes = figure(4.4, 3.7)
        for number, curve in enumerate(curves):
            shade = RUN_COLOURS[number % len(RUN_COLOURS)]
            axes.plot(*curve.points(measure), color=shade, linewidth=2, label=curve.label or "the contrastive loss")
            some = [one for one in curve.encoders if measure in one.measured]
            xs = [one.temperature or 0.0 for one in some]
            axes.plot(xs, [one.measured[measure] for one in some], "o", color=shade, markersize=5)
        plain_axes(axes, LOGGED[measure].heading, "temperature τ", "")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PLAIN)
        if len(curves) > 1:
            legend(axes)
        plots.append(Plot(f"temperature-{measure}", drawn, f"{LOGGED[measure].heading} against temperature"))
    return plots


def shares_of_uniform(temperature: float, count: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Returns an anchor's similarities and penalties, relative to their mean.

    Both have `count` entries. Its negatives' similarities are evenly spaced in [-1, 1].
    """
    similarities = torch.linspace(-1, 1, count, dtype=torch.float64)
    return similarities.numpy(), (gradient_shares(similarities, temperature) * count).numpy()


def penalties(values: Sequence[float]) -> Plot:
    """Draws a negative's gradient share by its similarity, for each temperature.

    As in Wang & Liu 2021.
    """
    drawn, axes = figure(5, 4.2)
    for number, temperature in enumerate(values):
        shade = RUN_COLOURS[number % len(RUN_COLOURS)]
        axes.plot(*shares_of_uniform(temperature, 201), color=shade, linewidth=2, label=f"τ = {temperature:g}")
    plain_axes(axes, "", "similarity to the anchor", "push, relative to the mean")
    axes.set_yscale("log")
    axes.set_ylim(1e-4)
    axes.yaxis.set_major_formatter(PLAIN)
    legend(axes)
    return Plot("penalties", drawn, "penalty by similarity")
