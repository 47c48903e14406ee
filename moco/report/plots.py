"""Sets the style of all figures, in SVG and in PNG.

Figures are `Figure` objects, not made by pyplot. So no global state changes and no display is needed. The colours are
Okabe & Ito's and Tol's, which people with the usual kinds of colour blindness can distinguish. Classes also have labels
with their names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moco.run.files import write_bytes

# Okabe & Ito (2008), in the order the runs are given
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Tol's "muted" scheme, its grey last
CLASS_COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB",
)  # fmt: skip
INK = "#222222"
FAINT = "#8a8a8a"
GRID = "#e6e6e6"
# names of these colours in page.css, which has other values for dark mode
IN_PAGE = {
    INK: "ink", FAINT: "soft", GRID: "grid", "#ffffff": "paper",
    **{shade: f"c{i}" for i, shade in enumerate(RUN_COLOURS)},
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Plot:
    """Holds one figure.

    marks: gid of an artist -> its attributes in the page.
    """

    name: str  # of its PNG; unique in a report
    figure: Figure
    label: str  # for screen readers
    marks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def png(self, folder: Path) -> Path:
        return write_figure(self.figure, folder / f"{self.name}.png")

    def svg(self) -> Markup:
        """Returns SVG for the body of an HTML page.

        Text stays text, colours become variables of page.css, and unused ids are removed.
        """
        packed = io.BytesIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(packed, format="svg", metadata=about)
        self.figure.set_layout_engine("none")  # the PNG keeps this layout: computing one takes longer than drawing
        text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", packed.getvalue().decode())  # a name may hold them, XML not
        root = ElementTree.fromstring(text)
        used = set(re.findall(r"#(\w+)", text))
        for element in root.iter():
            element.tag = element.tag.removeprefix(SVG)
            element.tail = None
            if LINK in element.attrib:
                element.set("href", element.attrib.pop(LINK))
            if "style" in element.attrib:
                style = re.sub(r"font-family: [^;]*(; )?", "", element.attrib["style"])  # the page's own is used
                element.set("style", re.sub(r"#[0-9a-f]{6}", _variable, style))
            if (name := element.get("id", "")) not in used:
                element.attrib.pop("id", None)
            element.attrib.update(self.marks.get(name, {}))
        for sheet in root.findall("defs[style]"):
            root.remove(sheet)  # it would style the whole page; page.css has its rule
        root.attrib = {"viewBox": root.attrib["viewBox"], "role": "group", "aria-label": self.label}
        return Markup(ElementTree.tostring(root, encoding="unicode"))


def _variable(colour: re.Match[str]) -> str:
    return f"var(--{IN_PAGE[colour[0]]})" if colour[0] in IN_PAGE else colour[0]


def write_figure(figure: Figure, path: str | Path) -> Path:
    packed = io.BytesIO()
    figure.savefig(packed)
    write_bytes(path, packed.getvalue())
    return Path(path)


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Makes a figure with one pair of axes, sized in inches.

    Its text can be read on a phone.
    """
    drawn = Figure(figsize=(width, height), dpi=200, layout="constrained")
    return drawn, drawn.subplots()


def plain_axes(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=INK, parse_math=False)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def legend(axes: Axes) -> None:
    """Draws the legend below the axes, where it hides no curve.

    Names are plain text, also if they contain $.
    """
    # matplotlib's own choice would leave out a run whose name begins with _
    drawn = (*axes.lines, *axes.collections, *axes.patches)
    handles = [one for one in drawn if not re.fullmatch(r"|_child\d+", str(one.get_label()))]
    labels = [str(one.get_label()) for one in handles]
    if handles and isinstance(axes.figure, Figure):
        columns = max(1, min(3, 60 // (6 + max(map(len, labels)))))
        place: dict[str, Any] = dict(loc="outside lower left", ncols=columns, fontsize=9, frameon=False, labelcolor=INK)
        for text in axes.figure.legend(handles, labels, **place).get_texts():
            text.set_parse_math(False)


def colour(share: float) -> str:
    """Returns a colour of viridis; `share` in [0, 1].

    Its darkest end is left out, because it would be invisible on a dark page.
    """
    return matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](0.12 + 0.86 * min(1.0, max(0.0, share))))


def shares(values: Iterable[float]) -> list[float]:
    """Returns each value's position between smallest and largest, in [0, 1].

    0.5 if all are equal.
    """
    known = list(values)
    low = min(known, default=0.0)
    high = max(known, default=1.0)
    return [(value - low) / (high - low) if high > low else 0.5 for value in known]
