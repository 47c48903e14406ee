"""Writes the curve of accuracy, uniformity and tolerance against the temperature.

    python -m launch.sweep launch/recipes/sweep_cifar10_temperature.yaml --cluster local --parallel 2 -- DATA.beton
    python -m benchmarks.temperature_curve runs/sweeps/cifar10-temperature

Reads the encoders of a sweep over the temperature τ.
Writes benchmarks/results/cifar10_temperature.json, and the table between its two marks in docs/results.md.
Elements that have not ended are counted and left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.results_page import COLUMNS, PAGE, RESULTS, measured_where, put
from moco.commands import run_command
from moco.report.runs import MEASURED, Encoder, read
from moco.run.files import write_json


def points(encoders: Sequence[Encoder], loss: str) -> list[dict[str, Any]]:
    """Returns the points of a loss's curve, in order of τ.

    A point has τ, the number of seeds, and mean and standard deviation of each measure.
    """
    of_temperature: dict[float, list[dict[str, float]]] = {}
    for one in encoders:
        if one.state in MEASURED and one.options["loss"] == loss:
            of_temperature.setdefault(float(one.options["moco_t"]), []).append(one.measured)
    rows = []
    for temperature, measured in sorted(of_temperature.items()):
        row: dict[str, Any] = {"moco_t": temperature, "seeds": len(measured)}
        for name in COLUMNS:
            values = [one[name] for one in measured]
            row[name] = statistics.mean(values)
            row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def findings(curve: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Answers the questions of Wang & Liu with one curve.

    Each answer is computed; none is assumed.
    """
    temperatures = [row["moco_t"] for row in curve]
    found: dict[str, Any] = {}
    for name in ("knn_top1", "lincls_top1"):
        best = max(range(len(curve)), key=lambda i: curve[i][name])
        found[name] = {"best_t": temperatures[best], "inside": 0 < best < len(curve) - 1}
    for name in ("val_uniformity", "val_tolerance"):
        values = [row[name] for row in curve]
        lowest = min(values)
        found[name] = {
            "spearman_with_t": float(spearmanr(temperatures, values).statistic),
            "lowest": lowest,
            "lowest_at_t": temperatures[values.index(lowest)],
            "at_the_largest_t": values[-1],
        }
    uniformity = found["val_uniformity"]
    uniformity["share_kept_at_the_largest_t"] = uniformity["at_the_largest_t"] / uniformity["lowest"]
    return found


def table(curves: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [f"| loss | τ | seeds | {' | '.join(COLUMNS.values())} |", "|---|---:|---:|" + "---:|" * len(COLUMNS)]
    for loss, curve in curves.items():
        for row in curve:
            cells = []
            for name in COLUMNS:
                digits = 1 if "top1" in name else 3
                spread = row[f"{name}_std"]
                cells.append(f"{row[name]:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else ""))
            lines.append(f"| {loss} | {row['moco_t']:g} | {row['seeds']} | {' | '.join(cells)} |")
    return lines


def answers(findings: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the findings as a table."""
    lines = [
        "| loss | best τ, kNN | best τ, linear | ρ of τ and uniformity | most uniform at τ | left at the largest |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for loss, found in findings.items():
        uniformity = found["val_uniformity"]
        lines.append(
            f"| {loss} | {found['knn_top1']['best_t']:g} | {found['lincls_top1']['best_t']:g}"
            f" | {uniformity['spearman_with_t']:.2f} | {uniformity['lowest_at_t']:g}"
            f" | {100 * uniformity['share_kept_at_the_largest_t']:.0f} % |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    folder = parser.parse_args().sweep
    encoders = read([folder])
    curves = {loss: points(encoders, loss) for loss in ("infonce", "hard")}
    curves = {loss: curve for loss, curve in curves.items() if len(curve) > 2}
    ended = [one for one in encoders if one.state in MEASURED]
    where = measured_where(ended)
    result: dict[str, Any] = {
        "command": "python -m launch.sweep launch/recipes/sweep_cifar10_temperature.yaml --cluster local --parallel 2",
        "measured": where,
        "elements": {"ended": len(ended), "left out": len(encoders) - len(ended)},
        "curves": curves,
        "findings": {loss: findings(curve) for loss, curve in curves.items()},
    }
    write_json(RESULTS / "cifar10_temperature.json", result)
    lines = [*table(curves), "", *answers(result["findings"]), "", where]
    PAGE.write_text(put(PAGE.read_text(), "cifar10-temperature", lines))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
