#!/usr/bin/env python
"""Writes tables of docs/results.md and README.md from two sweeps.

    python -m launch.sweep launch/recipes/sweep_imagenette.yaml --cluster local --parallel 2 -- DATA
    python -m launch.sweep launch/recipes/sweep_digits.yaml --cluster local --parallel 2
    python benchmarks/results_page.py runs/sweeps/imagenette runs/sweeps/digits

The sweeps train the heads on photographs, and forty encoders of digits.
Copies the sweeps' tables to benchmarks/results/ and draws docs/alignment_uniformity.png.
Only the lines between `<!-- NAME -->` and `<!-- end -->` of a page are replaced; the prose around them is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

from moco.commands import run_command
from moco.errors import InputError
from moco.losses.table import LOSSES
from moco.metrics.table import LOGGED
from moco.report import comparison, sweep_figures
from moco.report.correlation import rank_correlation
from moco.report.plots import write_figure
from moco.report.runs import COLLAPSE, DONE, KNN, MEASURED, PROBE, Encoder, read

ROOT = Path(__file__).resolve().parent.parent
PAGE, README, FIGURE = ROOT / "docs" / "results.md", ROOT / "README.md", ROOT / "docs" / "alignment_uniformity.png"
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = {name: LOGGED[name].title for name in (KNN, PROBE, "val_alignment", "val_uniformity", "val_tolerance")}
Predictor = Callable[[Mapping[str, float]], float]
SUM: dict[str, Predictor] = {"alignment + uniformity": comparison.sum_of}
PREDICTORS = SUM | {"alignment": itemgetter("val_alignment"), "uniformity": itemgetter("val_uniformity")}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("heads", type=Path, help="folder of the sweep of launch/recipes/sweep_imagenette.yaml")
    parser.add_argument("digits", type=Path, help="folder of the sweep of launch/recipes/sweep_digits.yaml")
    o = parser.parse_args()
    heads, digits = read([o.heads]), read([o.digits])
    page = PAGE.read_text()
    page = put(page, "heads", heads_table(heads) + ["", measured_where(heads)])
    PAGE.write_text(put(page, "digits", verdict(digits) + ["", measured_where(digits)]))
    README.write_text(put(README.read_text(), "digits", verdict(digits, SUM)))
    for folder in (o.heads, o.digits):
        shutil.copy(folder / "results.csv", RESULTS / f"sweep_{folder.name}.csv")
    write_figure(sweep_figures.plane(digits, PROBE).figure, FIGURE)
    print(f"wrote {PAGE}, {FIGURE} and the tables in {RESULTS}")
    return 0


def heads_table(encoders: Sequence[Encoder], columns: Mapping[str, str] = COLUMNS) -> list[str]:
    """Returns a table with a row for each setting.

    A cell is the mean ± standard deviation over the seeds. columns: the title of each measure.
    InputError if an encoder has not ended.
    """
    settings: dict[str, list[Encoder]] = {}
    for one in encoders:
        if one.state not in MEASURED:
            raise InputError(f"{one.name} is {one.state} ({one.why}): run the sweep to its end first")
        settings.setdefault(name_of(one), []).append(one)
    lines = [f"| head | seeds | {' | '.join(columns.values())} |", "|---|---:|" + "---:|" * len(columns)]
    for name, its in settings.items():
        collapsed = sum(one.state == COLLAPSE for one in its)
        cells = spreads([one.measured for one in its], columns)
        marked = f"{name}; {collapsed} collapsed" if collapsed else name
        lines.append(f"| {marked} | {len(its)} | {' | '.join(cells)} |")
    return lines


def name_of(one: Encoder) -> str:
    """Returns the loss and those of its settings that its head reads.

    Settings of 0 are left out.
    """
    row = LOSSES[one.options["loss"]]
    values = {name: one.option(name) for name in row.settings.values()}
    told = [f"{name.removeprefix('moco_')} {value:g}" for name, value in values.items() if value not in (None, 0)]
    return f"{one.options['loss']} ({', '.join(told)})"


def spreads(measured: Sequence[Mapping[str, float]], columns: Iterable[str]) -> list[str]:
    """Returns `spread` of each column.

    Accuracies have one digit after the point, other measures three.
    """
    return [spread([one[name] for one in measured], 1 if LOGGED[name].unit == "%" else 3) for name in columns]


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[list[float], str, float]:
    """Compares two lists of values, a value for each seed.

    Returns first - second of each seed, their mean ± standard deviation as text, and p of the paired t-test.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    told = f"{statistics.fmean(differences):+.1f} ± {statistics.stdev(differences):.1f}"
    return differences, told, float(ttest_rel(first, second).pvalue)


def spread(values: Sequence[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def verdict(encoders: Sequence[Encoder], predictors: Mapping[str, Predictor] = PREDICTORS) -> list[str]:
    """Returns a table of the predictors' rank correlations with accuracy.

    They show how well a predictor orders the encoders, with and without the collapsed ones.
    """
    lines = ["| encoders | n | measure | ρ with linear top-1 [95 % interval] | ρ with kNN top-1 |"]
    lines.append("|---|---:|---|---:|---:|")
    for name, states in (("all", (DONE, COLLAPSE)), ("without the collapsed", (DONE,))):
        measured = [one.measured for one in encoders if one.state in states]
        for predictor, of in predictors.items():
            values = [of(its) for its in measured]
            found = [rank_correlation(values, [its[measure] for its in measured]) for measure in (PROBE, KNN)]
            cells = [f"{r.rho:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in found]
            lines.append(f"| {name} | {len(measured)} | {predictor} | {' | '.join(cells)} |")
    return lines


def measured_where(encoders: Sequence[Encoder]) -> str:
    """Returns a line with machine and commit from the logs."""
    starts = [record for one in encoders for record in one.records if record.get("kind") == "start"]
    commits = sorted({str(record.get("git"))[:12] for record in starts})
    machines = {json.dumps(record.get("machine"), sort_keys=True): record["machine"] for record in starts}
    told = "; ".join(", ".join(f"{key} {value}" for key, value in its.items()) for its in machines.values())
    return f"Measured at commit {', '.join(commits)} on: {told}.{minutes_of(encoders)}"


def minutes_of(encoders: Sequence[Encoder]) -> str:
    """Returns a sentence on the time that a sweep's elements took.

    It is empty if the time is not known of each element.
    The sums are over elements, of which several may have run at a time.
    """
    rows = [json.loads(file.read_text()) for one in encoders if (file := one.folder.parent / "row.json").exists()]
    told = []
    for column, words in (("seconds", "by the clock"), ("cpu_seconds", "of processor time")):
        seconds = [row[column] for row in rows if column in row]
        if len(seconds) == len(encoders):
            told.append(f"{sum(seconds) / 60:.0f} minutes {words}")
    return f" Sums over {len(encoders)} elements: {', '.join(told)}." if told else ""


def replaced(file: Path, row: dict[str, Any], key: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the rows of a JSON file with `row` added.

    `row` replaces an earlier row that has the same values of `key`.
    """
    rows = json.loads(file.read_text()) if file.exists() else []
    return [one for one in rows if [one[name] for name in key] != [row[name] for name in key]] + [row]


def plain_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """A line for each row; a commit is cut to 12 digits."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [shortened(row[name]) if name == "commit" else str(row[name]) for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def shortened(commit: str) -> str:
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def put(page: str, name: str, lines: Sequence[str]) -> str:
    """Returns `page` with the part of that name replaced.

    InputError if it has no such part.
    """
    part = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
    if not part.search(page):
        raise InputError(f"the page has no part <!-- {name} --> ... <!-- end -->")
    return part.sub(lambda found: "\n".join([found[1].rstrip(), *lines, found[2]]), page)


if __name__ == "__main__":
    sys.exit(run_command(main))
