"""The page's sections about single checkpoints: how similar pairs of images are, and which images lie together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from moco.metrics.table import OF_FEATURES
from moco.report.neighbours import Row, Shown
from moco.report.page import keys, section
from moco.report.plots import Plot, number
from moco.report.runs import Encoder

MEASURES_FILE, SCHEMA = "measures.json", 1
KINDS = {"negative": "two images", "same_class": "two images of one class", "positive": "two views of one image"}


def measured(encoder: Encoder) -> str:
    """Histograms and measures of the measures.json in the run's folder (`python -m moco.evaluate --json`), or a
    sentence that it cannot be read; "" if there is none."""
    path = encoder.folder / MEASURES_FILE
    if not path.exists():
        return ""
    try:
        found = json.loads(path.read_text())
        if found["schema"] != SCHEMA:
            return _refused(encoder, f"has schema {found['schema']}, and this version reads {SCHEMA}")
        name, epoch = Path(found["checkpoint"]["path"]).name, found["checkpoint"]["epoch"]
        of = f"{name}, epoch {epoch}" if epoch is not None else name
        plots = "".join(_histograms(space, values["histograms"]) for space, values in found["spaces"].items())
        text = f"<h3>{escape(encoder.name)} <small>{escape(of)}</small></h3>"
        shown = f'<div class="scroll">{_table(found["spaces"])}</div>'
        return f'<div class="checkpoint">{text}<div class="panels">{plots}</div>{shown}</div>'
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return _refused(encoder, "cannot be read")


def _refused(encoder: Encoder, why: str) -> str:
    again = f"{MEASURES_FILE} of {encoder.name} {why}: write it again with python -m moco.evaluate"
    return f'<p class="refused">{escape(again)}.</p>'


def _histograms(space: str, counted: dict[str, Any]) -> str:
    """Densities, so that kinds of pairs of different number can be compared; a kind without pairs is left out."""
    few = sum(counted["positive"]) < 1000 and len(counted["positive"]) % 2 == 0
    join = 2 if few else 1  # bins drawn as one: few pairs in narrow bins are noise
    edges, shown = [float(edge) for edge in counted["edges"]][::join], {}
    for kind in KINDS:
        if counted[kind] and (total := sum(counted[kind])) > 0:
            counts = [sum(counted[kind][i : i + join]) for i in range(0, len(counted[kind]), join)]
            widths = [right - left for left, right in pairwise(edges)]
            shown[kind] = [n / total / w for n, w in zip(counts, widths, strict=True)]
    highest = max((max(density) for density in shown.values()), default=1.0)
    plot = Plot((-1, 1), (0, highest * 1.05), f"cosine of the {space}'s features", "density", width=340, height=260)
    for i, density in enumerate(shown.values()):
        plot.bars(edges, density, f"c{i}")
    return f"<figure>{plot.svg(f'similarities of the {space}')}{keys([KINDS[kind] for kind in shown])}</figure>"


def _table(spaces: dict[str, Any]) -> str:
    head = "".join(f'<th scope="col">{escape(name)} ({int(space["dim"])})</th>' for name, space in spaces.items())
    rows = []
    for name, row in OF_FEATURES.items():
        values = [space["measures"].get(name) for space in spaces.values()]
        cells = "".join(f'<td class="n">{"–" if v is None else number(float(v))}</td>' for v in values)
        rows.append(f'<tr><th scope="row">{escape(row.heading)}</th>{cells}</tr>')
    return (
        f'<table class="plain"><thead><tr><th scope="col">measure</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def histograms(encoders: Sequence[Encoder]) -> str:
    parts = [part for part in map(measured, encoders) if part]
    text = (
        "<p>Cosines of pairs of validation images, as python -m moco.evaluate counted them: two augmented views of one"
        " image, and of two images.</p>"
    )
    return section("Similarities", text, *parts) if parts else ""


def neighbours(grids: dict[str, list[Row]]) -> str:
    """grids: the rows of each run, by its name."""
    if not grids:
        return ""
    parts = []
    for name, rows in grids.items():
        images = (
            [_image(row.query, "query"), *(_image(one, _agreement(one, row.query)) for one in row.nearest)]
            for row in rows
        )
        lines = "".join(f"<div>{''.join(row)}</div>" for row in images)
        parts.append(f'<h3>{escape(name)}</h3><div class="near" tabindex="0" role="group">{lines}</div>')
    text = (
        "<p>The first of each row is the query; then the nearest others by the cosine of the trunk's features. Solid"
        " frame: the same class; dashed: another.</p>"
    )
    return section("Nearest neighbours", text, *parts)


def _agreement(one: Shown, query: Shown) -> str:
    return "" if not (one.label and query.label) else "same" if one.label == query.label else "different"


def _image(one: Shown, kind: str) -> str:
    told = f"{one.label or one.name}" + ("" if kind == "query" else f", {one.similarity:.2f}")
    says = "<br>".join(escape(part) for part in told.split(", "))
    alt = escape(f"{one.name}, {kind}" if kind else one.name)
    image = f'<img src="{one.uri}" alt="{alt}">'
    return f'<figure class="{kind}">{image}<figcaption>{says}</figcaption></figure>'
