"""Writes the page: one HTML file with all figures and data.

It loads no other file. page.html is its template, which escapes all text that comes from a run. page.css and page.js
are put into it unchanged. The page's content security policy forbids other scripts and any request.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from moco.metrics.table import LOGGED
from moco.pretrain.options import PretrainOptions
from moco.report.comparison import (
    accuracy_measure,
    against_published,
    correlations,
    differing,
    published,
    sum_of,
    tip,
    written,
)
from moco.report.correlation import FEWEST
from moco.report.neighbours import Row
from moco.report.plots import Plot
from moco.report.runs import COLLAPSE, COLLAPSE_RULE, Encoder
from moco.report.similarities import Checkpoint
from moco.run.options import result_options


@dataclass
class Contents:
    """Holds the contents of the page, from top to bottom."""

    title: str
    encoders: Sequence[Encoder]
    plane: Sequence[Plot]
    published: Sequence[Plot]  # measured against published
    temperatures: Sequence[Plot]
    together: Sequence[Plot]  # curves of all runs in one figure
    losses: Sequence[Plot]
    penalties: Sequence[Plot]
    checkpoints: Sequence[Checkpoint]
    grids: Mapping[str, Sequence[Row]]  # of nearest neighbours, by the checkpoint's name
    refresh: float | None = None  # seconds until a browser loads the page again

    @property
    def plots(self) -> list[Plot]:
        return [
            *self.plane, *self.published, *self.temperatures, *self.together, *self.losses, *self.penalties,
            *(plot for one in self.checkpoints for plot in one.plots),
        ]  # fmt: skip


def html(contents: Contents) -> str:
    """Returns the HTML of the whole page."""
    here = Path(__file__).parent
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.filters.update(number=number, minus=minus)
    style, script = (Markup((here / name).read_text()) for name in ("page.css", "page.js"))
    return templates.get_template("page.html").render(
        contents=contents,
        about=about(contents.encoders),
        findings=findings(contents.encoders),
        verdict=verdict(contents.encoders),
        compared=[
            f"{LOGGED[name].heading}, {minus(against_published(name, some))}"
            for name, some in published(contents.encoders).items()
        ],
        table=table(contents.encoders),
        style=style,
        script=script,
        allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def number(value: float) -> str:
    """Formats four significant digits and a minus sign: 0.05, 1500, −2.5."""
    return minus(f"{value:.4g}")


def minus(text: str) -> str:
    return text.replace("-", "−")


def about(encoders: Sequence[Encoder]) -> list[str]:
    """Counts states, data sets and commits."""
    states = ", ".join(f"{count} {state}" for state, count in Counter(one.state for one in encoders).items())
    data = sorted({str(one.options["dataset"]) for one in encoders if one.options.get("dataset")})
    commits = sorted({commit[:12] for one in encoders for commit in one.commits})
    named = [f"{name}: {', '.join(found)}" for name, found in (("data", data), ("commit", commits)) if found]
    return [states, *named]


def findings(encoders: Sequence[Encoder]) -> list[str]:
    """Writes three sentences: number of runs, best run, rank correlation."""
    compared = [one for one in encoders if one.compared]
    collapsed = sum(one.state == COLLAPSE for one in encoders)
    measure = accuracy_measure(encoders)
    lines = [f"{len(compared)} of {len(encoders)} runs are measured and comparable; {collapsed} collapsed."]
    rated = best_first([one for one in compared if measure in one.measured], measure)
    if measure and rated:
        row = LOGGED[measure]
        best = rated[0]
        worst = rated[-1]
        first, last = ("Highest", "lowest") if row.better == "higher" else ("Lowest", "highest")
        ends = [f"{number(round(one.measured[measure], row.digits))} ({one.name})" for one in (best, worst)]
        other = f"; {last}: {ends[1]}" if worst.measured[measure] != best.measured[measure] else ""
        lines.append(f"{first} {row.heading}: {ends[0]}{other}.")
    else:
        lines.append("No run has an accuracy yet.")
    if len(compared) >= FEWEST:
        which, words = correlations(encoders)[-1]
        value = minus(words) if words.startswith("none") else f"ρ = {minus(words)}"
        against = "accuracy" if measure is None or LOGGED[measure].better == "higher" else LOGGED[measure].title
        lines.append(f"Alignment + uniformity and {against}, {which}: {value}.")
    else:
        lines.append(f"Too few runs for a rank correlation: {len(compared)} of the {FEWEST} that it needs.")
    return lines


def best_first(encoders: Sequence[Encoder], measure: str | None) -> list[Encoder]:
    """Sorts encoders by a measure, the best first.

    Encoders without the measure are last, in the order given.
    """
    if measure is None:
        return list(encoders)
    sign = -1 if LOGGED[measure].better == "higher" else 1
    return sorted(encoders, key=lambda one: sign * one.measured[measure] if measure in one.measured else math.inf)


def verdict(encoders: Sequence[Encoder]) -> dict[str, Any]:
    """Returns the rank correlation with and without collapsed encoders.

    No lines if there are too few encoders.
    """
    measure = accuracy_measure(encoders)
    n = sum(one.compared for one in encoders)
    lines = [
        (which, words if words.startswith("none") else f"ρ = {minus(words)}".replace("n = ", "n\u00a0=\u00a0"))
        for which, words in (correlations(encoders) if n >= FEWEST else ())
    ]
    against = LOGGED[measure].heading if measure else "accuracy"
    return dict(n=n, fewest=FEWEST, lines=lines, against=against, rule=minus(COLLAPSE_RULE))


def table(encoders: Sequence[Encoder]) -> dict[str, Any]:
    """Makes the table: a row for each encoder, the most accurate first.

    A cell is (text, its number as text). The second is "" if the value is missing, None if it is not a number.
    """
    options = differing(encoders, result_options(PretrainOptions))
    metrics = {name: row for name, row in LOGGED.items() if any(name in one.measured for one in encoders)}
    heads = [("encoder", ""), ("state", "")] + [(row.heading, row.direction) for row in metrics.values()]
    heads += [("align. + unif.", "lower is better")]
    printed = {name: row for name, row in LOGGED.items() if any(name in one.published for one in encoders)}
    heads += [(f"published {row.heading}", row.direction) for row in printed.values()]
    heads += [(name, "") for name in options]
    rows = []
    for one in best_first(encoders, accuracy_measure(encoders)):
        cells = [_cell(one.measured.get(name), row.digits) for name, row in metrics.items()]
        total = _cell(sum_of(one.measured) if one.measured else None, 3)
        theirs = [_cell(one.published.get(name), row.digits) for name, row in printed.items()]
        chosen = [_option(one.option(name)) for name in options]
        rows.append(dict(encoder=one, tip=tip(one), cells=[*cells, total, *theirs, *chosen]))
    return dict(heads=heads, rows=rows)


def _cell(value: float | None, digits: int) -> tuple[str, str]:
    return ("–", "") if value is None else (minus(f"{value:.{digits}f}"), repr(value))


def _option(value: Any) -> tuple[str, str | None]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value), repr(value)
    return ("–" if value is None else written(value)), None
