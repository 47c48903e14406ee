"""The papers' figures: what is drawn is what was measured, and what cannot be compared has no colour."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from moco.report.comparison import TemperatureCurve
from moco.report.plots import colour
from moco.report.runs import KNN, OTHER, UNFINISHED, Encoder
from moco.report.sweep_figures import penalties, plane, shares_of_uniform, temperatures

WITHOUT = {"val_alignment": 0.5, "val_uniformity": -1.0}


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_penalties_follow_the_formula(temperature: float) -> None:
    """e^{s/τ} over its mean: the integral over [-1, 1] is 2τ sinh(1/τ), and the mean half of that."""
    s, push = shares_of_uniform(temperature, 20_001)
    assert s[0] == -1 and s[-1] == 1 and push.mean() == pytest.approx(1)
    expected = np.exp(s / temperature) / (temperature * math.sinh(1 / temperature))
    assert push == pytest.approx(expected, rel=2e-3)


def test_penalties_are_drawn() -> None:
    (axes,) = penalties([0.05, 0.5]).figure.axes
    assert [line.get_label() for line in axes.lines] == ["τ = 0.05", "τ = 0.5"]
    assert axes.lines[1].get_ydata() == pytest.approx(shares_of_uniform(0.5, 201)[1])


def encoder(name: str, knn: float, **more: Any) -> Encoder:
    measured = {"val_alignment": knn / 100, "val_uniformity": -knn / 50, KNN: knn}
    return Encoder(name, Path(name), **{"measured": measured, **more})


def dots(encoders: list[Encoder]) -> list[tuple[float, float, str]]:
    """(x, y, colour or "none") of each."""
    found = []
    collections: Any = plane(encoders, KNN).figure.axes[0].collections
    for dot in collections:
        if str(dot.get_gid()).startswith("dot-"):
            (x, y), fill = dot.get_offsets()[0], dot.get_facecolor()
            found.append((float(x), float(y), to_hex(fill[0]) if len(fill) else "none"))
    return found


def test_a_dot_lies_where_it_was_measured() -> None:
    assert dots([encoder("a", 20), encoder("b", 80)]) == [(0.2, -0.4, colour(0)), (0.8, -1.6, colour(1))]


def test_what_cannot_be_compared_has_no_colour() -> None:
    three = [encoder("a", 20), encoder("b", 50), encoder("c", 80)]
    assert [fill for *_, fill in dots(three)] == [colour(0), colour(0.5), colour(1)]
    # another's number sets no scale
    shown = dots([*three, encoder("other", 99, state=OTHER), encoder("without", 0, measured=WITHOUT)])
    assert [fill for *_, fill in shown] == [colour(0), colour(0.5), colour(1), "none", "none"]
    assert len(dots([*three, encoder("half", 1, state=UNFINISHED, measured={})])) == 3


def test_a_dot_says_what_it_is() -> None:
    drawn = plane([encoder("a", 20, state=OTHER, why="another commit")], None)
    mark = drawn.marks["dot-0"]
    assert mark["data-name"] == "a" and mark["aria-label"] == "a: not comparable"
    assert mark["data-tip"].startswith("a\nnot comparable: another commit\nkNN top-1 [%]: 20\nalignment: 0.2")
    assert 'class="dot"' in drawn.svg()


def test_temperatures_draw_means_and_encoders() -> None:
    curve = TemperatureCurve("", [encoder(f"{t}", 10 * t, options={"moco_t": t}) for t in (0.5, 0.1, 0.1)])
    curve.encoders[2].measured[KNN] = 3.0
    (drawn,) = temperatures([curve], [KNN])
    lines: Any = drawn.figure.axes[0].lines
    assert (lines[0].get_xdata().tolist(), lines[0].get_ydata().tolist()) == ([0.1, 0.5], [2, 5])
    assert sorted(lines[1].get_ydata()) == [1, 3, 5] and drawn.name == "temperature-knn_top1"
