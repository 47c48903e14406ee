"""The page: one HTML file with all figures, table and data in it, which loads nothing from anywhere.

Figures are inline SVG, so that they follow the page's colours and can be pointed at; page.css and page.js are put into
it as they are. Everything that comes from a run is escaped, and the page's own policy forbids other scripts and any
request.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from moco.metrics.table import LOGGED
from moco.pretrain.options import PretrainOptions
from moco.report.comparison import TemperatureCurve, accuracy_measure, correlations, differing, sum_of
from moco.report.correlation import FEWEST
from moco.report.figures import series
from moco.report.plots import COLOURS, Plot, colour, number, outline, spread
from moco.report.runs import COLLAPSE_RULE, KNN, MEASURED, OTHER, Encoder
from moco.report.sweep_figures import SHAPES, shares_of_uniform
from moco.run.options import result_options

DEFAULTS = {field.name: field.default for field in dataclasses.fields(PretrainOptions)}
MANY = 12  # from here on curves are folded away


def html(title: str, sections: Sequence[str]) -> str:
    """The whole file. `sections` are HTML already."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text() for name in ("page.css", "page.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + f'\n</main>\n<div id="tip" role="tooltip" hidden></div>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def header(title: str, encoders: Sequence[Encoder]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in Counter(one.state for one in encoders).items())
    data = sorted({str(one.options["dataset"]) for one in encoders if one.options.get("dataset")})
    commits = sorted({commit[:12] for one in encoders for commit in one.commits})
    about = [states, f"data: {', '.join(data)}" if data else "", f"commit: {', '.join(commits)}" if commits else ""]
    said = " · ".join(escape(part) for part in about if part)
    return f"<header>\n<h1>{escape(title)}</h1>\n<p>{said}</p>\n</header>"


# -- alignment and uniformity ------------------------------------------------------------------------------------------


def plane(encoders: Sequence[Encoder]) -> str:
    """Wang & Isola's figure, and beside it the table of all encoders."""
    measure, shown = accuracy_measure(encoders), [one for one in encoders if one.state in MEASURED]
    values = [one.measured[measure] for one in shown if one.compared and measure in one.measured] if measure else []
    x, y = (spread(one.measured[name] for one in shown) for name in ("val_alignment", "val_uniformity"))
    plot = Plot(x, y, "alignment  ← closer positives", "uniformity  ← more spread out", height=380, top=56)
    if measure and values:
        plot.scale_bar(min(values), max(values), LOGGED[measure].heading)
    for one in shown:
        value = one.measured.get(measure or "") if one.compared else None  # hollow: no colour that could mislead
        fill = "none" if value is None else colour(share(value, values))
        at = one.measured["val_alignment"], one.measured["val_uniformity"]
        plot.mark(*at, SHAPES[one.state], fill, f"{one.name}: {one.state}", {"name": one.name, "tip": tip(one)})
    shapes = "".join(
        f'<span><svg viewBox="0 0 18 18" width="16" height="16" aria-hidden="true"><path class="key'
        f'{" hollow" if state == OTHER else ""}" d="{outline(shape, 9, 9)}"/></svg>{escape(state)}</span>'
        for state, shape in SHAPES.items()
        if any(one.state == state for one in shown)
    )
    if any(one.compared and measure not in one.measured for one in shown):
        shapes += f"<span>hollow: no {escape(LOGGED[measure].heading) if measure else 'accuracy'}</span>"
    legend = f'<figcaption class="keys">{shapes}</figcaption>'
    figure = f"<figure>{plot.svg('alignment against uniformity')}{legend}</figure>"
    left = figure if shown else "<p>No encoder has been measured yet.</p>"
    beside = f'<div class="beside"><div class="plane">{left}{verdict(encoders)}</div>{table(encoders)}</div>'
    return section("Alignment and uniformity", beside)


def share(value: float, values: Sequence[float]) -> float:
    """Position of `value` between the least and greatest of `values`, in [0, 1]."""
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def verdict(encoders: Sequence[Encoder]) -> str:
    """The rank correlation, with and without collapsed encoders, and the rule that tells them."""
    measure, n = accuracy_measure(encoders), sum(one.compared for one in encoders)
    if n < FEWEST:
        return f"<p>No rank correlation: it needs at least {FEWEST} comparable encoders, and here is {n or 'none'}.</p>"
    lines = []
    for which, words in correlations(encoders):
        if not words.startswith("none"):
            words = f"ρ = {words}".replace("-", "−").replace("n = ", "n\u00a0=\u00a0")
        lines.append(f"<dt>{which}</dt><dd>{escape(words)}</dd>")
    against = LOGGED[measure].heading if measure else "accuracy"
    return (
        f"<p>Spearman's rank correlation of alignment + uniformity with {escape(against)}; the nearer to −1, the better"
        f" the sum predicts it. Bootstrap over encoders, seed 0.</p><dl>{''.join(lines)}</dl>"
        f'<p class="small">{escape(COLLAPSE_RULE.replace("-", "−"))}.</p>'
    )


def tip(one: Encoder) -> str:
    """What pointing at an encoder shows: measures, then its options that are not at their defaults."""
    lines = [one.name, *([f"{one.state}: {one.why}"] if one.why else [])]
    lines += [f"{LOGGED[name].heading}: {one.measured[name]:.4g}" for name in LOGGED if name in one.measured]
    changed = [name for name in result_options(PretrainOptions) if one.option(name) not in (None, DEFAULTS.get(name))]
    return "\n".join([*lines, "", *(f"--{name.replace('_', '-')} {written(one.option(name))}" for name in changed)])


def written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def table(encoders: Sequence[Encoder]) -> str:
    """Sorted by a click on a header, filtered by text. An encoder without numbers has a marked row that says why."""
    options = differing(encoders, result_options(PretrainOptions))
    measures = [name for name in LOGGED if any(name in one.measured for one in encoders)]
    heads = ["encoder", "state", *(LOGGED[name].heading for name in measures), "align. + unif.", *options]
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(name)}</button></th>' for name in heads
    )
    rows = []
    for one in encoders:
        numbers = [one.measured.get(name) for name in measures]
        numbers.append(sum_of(one.measured) if one.measured else None)
        cells = [
            f'<td class="n" data-value="{"" if v is None else repr(v)}">{_short(head, v)}</td>'
            for head, v in zip(heads[2:], numbers, strict=False)
        ]
        cells += [_option_cell(one.option(name)) for name in options]
        state = escape(one.state) + (f"<small>{escape(one.why)}</small>" if one.why else "")
        mark = "" if one.state == "done" else ' class="marked"'
        name = f'<th scope="row" tabindex="0" data-tip="{escape(tip(one))}">{escape(one.name)}</th>'
        rest = f'<td class="state">{state}</td>{"".join(cells)}'
        rows.append(f'<tr{mark} data-name="{escape(one.name)}">{name}{rest}</tr>')
    return (
        '<div class="list"><p class="filter"><label>Filter <input type="search" id="filter" autocomplete="off"'
        ' placeholder="words, all of which must occur"></label> <output id="count" for="filter"></output></p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="table of encoders"><table id="encoders">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _short(name: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{2 if '[%]' in name else 3}f}".replace("-", "−")


def _option_cell(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="n" data-value="{value!r}">{number(value)}</td>'
    return f"<td>{escape(written(value)) if value is not None else '–'}</td>"


# -- curves ------------------------------------------------------------------------------------------------------------


def keys(names: Sequence[str]) -> str:
    marks = "".join(f'<span><i class="c{i % COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<figcaption class="keys">{marks}</figcaption>'


def temperatures(curves: Sequence[TemperatureCurve], measures: Sequence[str]) -> str:
    if not curves:
        return ""
    figures = []
    for measure in measures:
        found = [(curve, *curve.points(measure)) for curve in curves]
        ts = [t for _, xs, _ in found for t in xs]
        each = [one.measured[measure] for curve in curves for one in curve.encoders if measure in one.measured]
        plot = Plot(
            (min(ts) * 0.85, max(ts) * 1.18),
            spread(each),
            "temperature τ",
            LOGGED[measure].heading,
            width=340,
            height=260,
            log=True,
        )
        for i, (curve, xs, ys) in enumerate(found):
            plot.line(xs, ys, f"c{i % COLOURS}")
            for one in curve.encoders:
                if measure in one.measured:
                    plot.line([one.temperature or 0.0], [one.measured[measure]], f"c{i % COLOURS}")
        figures.append(f"<figure>{plot.svg(f'{LOGGED[measure].heading} against temperature')}</figure>")
    legend = keys([curve.label or "the contrastive loss" for curve in curves]) if len(curves) > 1 else ""
    text = "<p>Encoders that differ in nothing but temperature and seed (Wang &amp; Liu 2021): means over seeds.</p>"
    return section("Temperature", text, f'<div class="panels">{"".join(figures)}</div>', legend)


def training(encoders: Sequence[Encoder]) -> str:
    """The loss of each run on its own scale, for losses of different heads have none in common; kNN on one."""
    trained = [one for one in encoders if one.trained]
    panels, evaluated = [], []
    for one in trained:
        epochs, values = series(one.records, "epoch", "loss")
        if len(epochs):
            plot = Plot((0, max(1, epochs[-1])), spread(values), "epoch", "loss", width=270, height=190, whole=True)
            plot.line(epochs.tolist(), values.tolist())
            state = "" if one.state == "done" else f" <small>{escape(one.state)}</small>"
            panels.append(f"<figure><h3>{escape(one.name)}{state}</h3>{plot.svg(f'loss of {one.name}')}</figure>")
        evaluated.append((one.name, *series(one.records, "eval", KNN)))
    curves = [entry for entry in evaluated if len(entry[1]) > 1]
    parts = []
    if curves:
        last = max(int(epochs[-1]) for _, epochs, _ in curves)
        plot = Plot((0, last), spread(v for _, _, vs in curves for v in vs), "epoch", "kNN top-1 [%]", whole=True)
        few, ends = len(curves) <= COLOURS, [float(values[-1]) for _, _, values in curves]
        for i, (_, epochs, values) in enumerate(curves):
            shade = "" if few else colour(share(ends[i], ends))
            plot.line(epochs.tolist(), values.tolist(), f"c{i % COLOURS}", dots=few, paint=shade)
        legend = keys([name for name, _, _ in curves]) if few else ""
        parts.append(f'<figure class="alone">{plot.svg("kNN accuracy while training")}{legend}</figure>')
    losses = f'<div class="panels small">{"".join(panels)}</div>'
    if len(panels) > MANY:
        losses = f"<details><summary>Loss of each of {len(panels)} runs</summary>{losses}</details>"
    return section("Training", *parts, losses if panels else "<p>No run has finished an epoch.</p>")


def penalties(values: Sequence[float]) -> str:
    """The gradient's share of a negative by its similarity, relative to the mean."""
    plot = Plot((-1, 1), (-4, 2.2), "similarity to the anchor", "push over its mean, log₁₀", height=320)
    for i, temperature in enumerate(values):
        similarities, push = shares_of_uniform(temperature, 101)
        kept = [(s, p) for s, p in zip(similarities.tolist(), push.tolist(), strict=True) if p >= 1e-4]
        plot.line([s for s, _ in kept], [math.log10(p) for _, p in kept], f"c{i % COLOURS}")
    text = (
        "<p>Relative penalty of the contrastive loss on a negative (Wang &amp; Liu 2021, §3.2), computed for negatives"
        " that lie evenly in [−1, 1]: not measured on a run.</p>"
    )
    legend = keys([f"τ {value:g}" for value in values])
    figure = f'<figure class="alone">{plot.svg("penalty by similarity")}{legend}</figure>'
    return section("Which negatives are pushed away", text, figure)
