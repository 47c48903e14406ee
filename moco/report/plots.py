"""Plots as inline SVG: axes, ticks, lines, dots and bars as text, coloured by the page's own style sheet.

Nothing here knows what is plotted. Positions are in the units of the data. A plot scales with the page, so that one
drawn narrower than another for the same place has larger text. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import matplotlib

RIGHT, BOTTOM = 12.0, 42.0  # margins; the left one depends on its labels
COLOURS = 6  # classes c0 ... c5 of page.css


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high], about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]; the powers alone if they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    return [t for p in powers for s in steps if low * 0.999 <= (t := float(f"{s}e{p}")) <= high * 1.001]


def number(value: float) -> str:
    """As short as it can be said, with a proper minus: 0.05, 1500, −2.5."""
    return f"{value:.4g}".replace("-", "−")


def colour(share: float) -> str:
    """Viridis without its darkest end, which a dark page would swallow; `share` in [0, 1]."""
    return matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](0.12 + 0.86 * min(1.0, max(0.0, share))))


def spread(values: Iterable[float], margin: float = 0.06) -> tuple[float, float]:
    """(low, high) of the finite values with room around them; (0, 1) if there are none."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = (high - low) * margin or abs(high) * margin or 0.5
    return low - room, high + room


class Plot:
    """One pair of axes. x, y: (low, high) of each axis; `log` makes the x axis logarithmic."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        xlabel: str,
        ylabel: str,
        *,
        width: float = 420.0,
        height: float = 300.0,
        top: float = 12.0,
        log: bool = False,
        whole: bool = False,
    ):
        self.x, self.y, self.log, self.width, self.height, self.top = x, y, log, width, height, top
        up = ticks(*y, about=max(2, round((height - top - BOTTOM) / 50)))
        self.left = 32.0 + 7 * max(len(number(value)) for value in up)
        self.marks: list[str] = []
        self.above: list[str] = []  # drawn in the margin above the axes
        self.axes = self._axes(xlabel, ylabel, up, whole)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Position of (x, y) on the paper."""
        scale = math.log if self.log else float
        across = (scale(x) - scale(self.x[0])) / (scale(self.x[1]) - scale(self.x[0]))
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        room = self.height - self.top - BOTTOM
        return self.left + across * (self.width - self.left - RIGHT), self.top + (1 - up) * room

    def line(
        self, xs: Sequence[float], ys: Sequence[float], kind: str = "c0", *, dots: bool = False, paint: str = ""
    ) -> None:
        """A line through the points in turn; values that are not finite interrupt it. One point alone is a dot.
        `paint`: a colour instead of that of the class."""
        how = f'{kind}" style="color:{paint}' if paint else kind
        parts: list[list[str]] = [[]]
        for x, y in zip(xs, ys, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                parts[-1].append("{:.1f},{:.1f}".format(*self.at(x, y)))
            elif parts[-1]:
                parts.append([])
        for part in parts:
            if len(part) > 1:
                self.marks.append(f'<polyline class="line {how}" points="{" ".join(part)}"/>')
            for point in part if dots or len(part) == 1 else ():
                cx, cy = point.split(",")
                self.marks.append(f'<circle class="point {how}" cx="{cx}" cy="{cy}" r="3.2"/>')

    def bars(self, edges: Sequence[float], heights: Sequence[float], kind: str = "c0") -> None:
        """A histogram as one filled outline; len(edges) = len(heights) + 1."""
        base = self.at(edges[0], max(0.0, self.y[0]))[1]
        points = [f"{self.at(edges[0], 0)[0]:.1f},{base:.1f}"]
        for left, right, h in zip(edges[:-1], edges[1:], heights, strict=True):
            points += ["{:.1f},{:.1f}".format(*self.at(left, h)), "{:.1f},{:.1f}".format(*self.at(right, h))]
        points.append(f"{self.at(edges[-1], 0)[0]:.1f},{base:.1f}")
        self.marks.append(f'<polygon class="bars {kind}" points="{" ".join(points)}"/>')

    def mark(self, x: float, y: float, shape: str, fill: str, label: str, data: Mapping[str, str]) -> None:
        """A dot that can be pointed at and focused. shape: "circle", "diamond" or "square"; `label` is read aloud."""
        cx, cy = self.at(x, y)
        values = "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())
        said = f'class="dot" tabindex="0" role="img" aria-label="{escape(label)}"{values}'
        self.marks.append(f'<path {said} d="{outline(shape, cx, cy)}" fill="{fill}"/>')

    def scale_bar(self, low: float, high: float, label: str) -> None:
        """The colour map from `low` to `high`, above the axes; needs top >= 56."""
        x, width, steps = self.left, self.width - self.left - RIGHT, 48
        self.above.append(f'<text class="label" x="{x}" y="12">{escape(label)}</text>')
        for i in range(steps):
            at, fill = x + i * width / steps, colour((i + 0.5) / steps)
            self.above.append(f'<rect x="{at:.2f}" y="18" width="{width / steps + 0.4:.2f}" height="9" fill="{fill}"/>')
        for value in ticks(low, high, 4):
            at = x + width * ((value - low) / (high - low) if high > low else 0.5)
            self.above.append(f'<text class="tick middle" x="{at:.1f}" y="40">{number(value)}</text>')

    def svg(self, title: str) -> str:
        """`title` is what a screen reader says of the whole."""
        inside = "".join((*self.axes, *self.above, *self.marks))
        box = f"0 0 {self.width:g} {self.height:g}"
        return f'<svg viewBox="{box}" role="group" aria-label="{escape(title)}">{inside}</svg>'

    def _axes(self, xlabel: str, ylabel: str, up: Sequence[float], whole: bool) -> list[str]:
        left, bottom, right, parts = self.left, self.height - BOTTOM, self.width - RIGHT, []
        for value in up:
            y = self.at(self.x[0], value)[1]
            parts.append(f'<path class="grid" d="M{left:g} {y:.1f}H{right:g}"/>')
            parts.append(f'<text class="tick end" x="{left - 7:g}" y="{y + 4:.1f}">{number(value)}</text>')
        across = log_ticks(*self.x) if self.log else ticks(*self.x, max(2, round((right - left) / 70)))
        for value in [v for v in across if not whole or v == round(v)]:
            x = self.at(value, self.y[0])[0]
            parts.append(f'<path class="grid" d="M{x:.1f} {self.top:g}V{bottom:g}"/>')
            parts.append(f'<text class="tick middle" x="{x:.1f}" y="{bottom + 16:g}">{number(value)}</text>')
        parts.append(f'<path class="axis" d="M{left:g} {self.top:g}V{bottom:g}H{right:g}"/>')
        middle = (self.top + bottom) / 2
        parts.append(f'<text class="label end" x="{right:g}" y="{self.height - 8:g}">{escape(xlabel)}</text>')
        turn = f'transform="translate(13 {middle:g}) rotate(-90)"'
        parts.append(f'<text class="label middle" {turn}>{escape(ylabel)}</text>')
        return parts


def outline(shape: str, x: float, y: float, r: float = 6.0) -> str:
    """The path of a circle, diamond or square of about the same area around (x, y)."""
    if shape == "diamond":
        d = r * 1.25
        return f"M{x:.1f} {y - d:.1f}l{d:g} {d:g}l{-d:g} {d:g}l{-d:g} {-d:g}Z"
    if shape == "square":
        s = r * 1.8
        return f"M{x - s / 2:.1f} {y - s / 2:.1f}h{s:g}v{s:g}h{-s:g}Z"
    return f"M{x - r:.1f} {y:.1f}a{r:g} {r:g} 0 1 0 {2 * r:g} 0a{r:g} {r:g} 0 1 0 {-2 * r:g} 0Z"
