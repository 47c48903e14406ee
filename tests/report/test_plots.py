"""A figure in the page: colours follow the scheme, text stays text, ids are its own; the PNG is of the same figure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from moco.report import plots
from moco.report.plots import FAINT, INK, RUN_COLOURS, Plot, colour, figure, legend, plain_axes, shares

HOSTILE = "<script>\"'& $\\bad$ \x01</script>"


def plot(name: str = "some", words: str = "words") -> Plot:
    drawn, axes = figure(4, 3)
    axes.plot([0, 1], [1, 2], "o-", color=RUN_COLOURS[1], label=words)
    axes.scatter([0.5], [1.5], gid="dot-0", facecolors="none", edgecolors=INK)
    axes.set_axisbelow(True)
    plain_axes(axes, words, "x", "y")
    legend(axes)
    return Plot(name, drawn, words, {"dot-0": {"class": "dot", "data-tip": words}})


def test_text_stays_text() -> None:
    tree = ElementTree.fromstring(plot(words=HOSTILE).svg().replace("\x01", ""))
    assert tree.tag == "svg" and not tree.findall(".//script") and not tree.findall(".//style")
    texts = [element.text for element in tree.iter("text")]
    shown = HOSTILE.replace("\x01", "")
    assert texts.count(shown) == 2  # title and legend; no formula, no control sign
    (dot,) = tree.findall(".//g[@class='dot']")
    assert dot.get("data-tip") == HOSTILE.replace("\x01", "") and len(dot) > 0


def test_colours_are_those_of_the_page() -> None:
    svg = plot().svg()
    assert {"var(--ink)", "var(--soft)", "var(--grid)", "var(--c1)"} <= set(re.findall(r"var\([^)]*\)", svg))
    assert not re.findall(f"{INK}|{FAINT}|{RUN_COLOURS[1]}", svg, re.IGNORECASE)
    style = (Path(plots.__file__).parent / "page.css").read_text()
    assert "font-family" not in svg and "font-size" in svg
    for name in plots.IN_PAGE.values():
        assert len(re.findall(rf"--{name}:", style)) == 2, "one for light, one for dark"


def test_figures_of_one_page_share_no_ids() -> None:
    first, second = (plot(name).svg() for name in ("first", "second"))
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert ids[0] == set(re.findall(r"#(\w+)", first))  # all that are referred to, and no other
    assert plot("first").svg() == first


def test_png_of_the_same_figure(tmp_path: Path) -> None:
    drawn = plot()
    drawn.svg()
    with Image.open(drawn.png(tmp_path / "new")) as picture:
        assert picture.size == (800, 600)
        shades = {found for _, found in picture.convert("RGB").getcolors(1 << 24) or ()}
    assert (0xD5, 0x5E, 0x00) in shades


def test_colours_follow_the_shares() -> None:
    assert colour(-1) == colour(0) != colour(0.5) != colour(1) == colour(2)
    assert shares([2, 4, 3]) == [0, 1, 0.5] and shares([7, 7]) == [0.5, 0.5] and shares([]) == []


@pytest.mark.parametrize(("longest", "columns"), [(4, 3), (20, 2), (70, 1)])
def test_long_names_have_a_line_each(longest: int, columns: int) -> None:
    drawn, axes = figure(4, 3)
    for _ in range(3):
        axes.plot([0], [0], label="n" * longest)
    legend(axes)
    legends: Any = drawn.legends
    assert legends[0]._ncols == columns
