"""Plots as SVG: round ticks, positions in the units of the data, text that stays text."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, strategies as st

from moco.report.plots import Plot, colour, log_ticks, number, outline, spread, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9))
def test_ticks_are_round_and_inside(low: float, width: float, about: int) -> None:
    found = ticks(low, low + width, about)
    assert 1 <= len(found) <= 2 * about + 2
    assert all(low - width * 1e-6 - 1e-11 <= t <= low + width * (1 + 1e-6) + 1e-11 for t in found)


def test_ticks_as_people_write_them() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(-3.9, 0.1, 4) == [-3, -2, -1, 0]
    assert ticks(2, 2) == [2]
    assert log_ticks(0.05, 1.2) == [0.05, 0.1, 0.2, 0.5, 1]
    assert log_ticks(0.001, 100) == [0.001, 0.01, 0.1, 1, 10, 100]
    assert number(-0.25) == "−0.25" and number(1500) == "1500"


def test_corners_lie_where_they_should() -> None:
    plot = Plot((10, 20), (-1, 1), "x", "y", width=400, height=300, top=20)
    assert plot.at(10, -1) == (plot.left, 258) and plot.at(20, 1) == (388, 20)
    x, y = plot.at(15, 0)
    assert x == (plot.left + 388) / 2 and y == 139  # up is less
    log = Plot((0.1, 10), (0, 1), "x", "y", width=400, log=True)
    assert log.at(1, 0)[0] == pytest.approx((log.left + 388) / 2)


def test_a_line_is_broken_where_there_is_no_number() -> None:
    plot = Plot((0, 5), (0, 5), "x", "y")
    plot.line([0, 1, 2, 3, 4], [1, 2, math.nan, 3, 4])
    plot.line([0, 1, 2], [1, math.inf, 2])
    assert [mark.split()[0] for mark in plot.marks] == ["<polyline", "<polyline", "<circle", "<circle"]


def test_bars_enclose_their_histogram() -> None:
    plot = Plot((0, 2), (0, 4), "x", "y", width=400, height=300, top=20)
    plot.bars([0, 1, 2], [4, 2])
    left, middle, right, base = plot.left, (plot.left + 388) / 2, 388.0, 258.0
    corners = [(left, base), (left, 20), (middle, 20), (middle, 139), (right, 139), (right, base)]
    found = [tuple(map(float, point.split(","))) for point in re.findall(r"[\d.]+,[\d.]+", plot.marks[0])]
    assert found == [pytest.approx(corner, abs=0.06) for corner in corners]


def test_text_stays_text() -> None:
    bad = "<script>\"'&"
    plot = Plot((0, 1), (0, 1), bad, bad, top=60)
    plot.scale_bar(0, 1, bad)
    plot.mark(0.5, 0.5, "circle", "#fff", bad, {"tip": bad})
    tree = ElementTree.fromstring(plot.svg(bad))  # it is well-formed, and holds the text itself
    assert tree.get("aria-label") == bad and not tree.findall(".//script")
    (dot,) = [element for element in tree if element.get("class") == "dot"]
    assert dot.get("data-tip") == bad and dot.get("tabindex") == "0"
    assert [element.text for element in tree if element.get("class", "").startswith("label")] == [bad] * 3


def test_shapes_close_and_colours_follow() -> None:
    assert len({outline(shape, 5, 5) for shape in ("circle", "diamond", "square")}) == 3
    assert all(outline(shape, 5, 5).endswith("Z") for shape in ("circle", "diamond", "square"))
    assert colour(-1) == colour(0) != colour(0.5) != colour(1) == colour(2)
    assert spread([]) == (0, 1) and spread([math.nan, 2, 4], 0.5) == (1, 5)
    low, high = spread([3])
    assert low < 3 < high
