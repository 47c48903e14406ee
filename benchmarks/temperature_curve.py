"""The temperature curve of docs/results.md: accuracy, uniformity and tolerance of a sweep's encoders against τ.

    python -m launch.sweep launch/recipes/sweep_cifar10_temperature.yaml --cluster local --parallel 2 -- DATA.beton
    python -m benchmarks.temperature_curve runs/sweeps/cifar10-temperature

Writes benchmarks/results/cifar10_temperature.json, and the table between its two marks in docs/results.md.
Elements that have not ended are counted and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.results_page import COLUMNS, PAGE, RESULTS, put
from moco.report.runs import MEASURED, Encoder, read
from moco.run.files import write_json


def points(encoders: Sequence[Encoder], loss: str) -> list[dict[str, float]]:
    """The encoders of one loss in the order of τ: τ and the measures."""
    its = [one for one in encoders if one.state in MEASURED and one.options["loss"] == loss]
    rows = [
        {"moco_t": float(one.options["moco_t"]), **{name: one.measured[name] for name in COLUMNS}} for one in its
    ]
    return sorted(rows, key=lambda row: row["moco_t"])


def findings(curve: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The questions of Wang & Liu, answered by one curve. Each answer is computed; none is assumed."""
    temperatures = [row["moco_t"] for row in curve]
    found: dict[str, Any] = {}
    for name in ("knn_top1", "lincls_top1"):
        best = max(range(len(curve)), key=lambda i: curve[i][name])
        found[name] = {"best_t": temperatures[best], "inside": 0 < best < len(curve) - 1}
    for name in ("val_uniformity", "val_tolerance"):
        found[name] = {"spearman_with_t": float(spearmanr(temperatures, [row[name] for row in curve]).statistic)}
    return found


def table(curves: dict[str, list[dict[str, float]]]) -> list[str]:
    lines = [f"| loss | τ | {' | '.join(COLUMNS.values())} |", "|---|---:|" + "---:|" * len(COLUMNS)]
    for loss, curve in curves.items():
        for row in curve:
            cells = [f"{row[name]:.{1 if 'top1' in name else 3}f}" for name in COLUMNS]
            lines.append(f"| {loss} | {row['moco_t']:g} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    folder = parser.parse_args().sweep
    encoders = read([folder])
    curves = {loss: points(encoders, loss) for loss in ("infonce", "hard")}
    curves = {loss: curve for loss, curve in curves.items() if len(curve) > 2}
    ended = [one for one in encoders if one.state in MEASURED]
    start = next(record for record in ended[0].records if record["kind"] == "start")
    result = {
        "command": "python -m launch.sweep launch/recipes/sweep_cifar10_temperature.yaml --cluster local --parallel 2",
        "machine": start["machine"],
        "commits": sorted({commit for one in ended for commit in one.commits}),
        "elements": {"ended": len(ended), "left out": len(encoders) - len(ended)},
        "curves": curves,
        "findings": {loss: findings(curve) for loss, curve in curves.items()},
    }
    write_json(RESULTS / "cifar10_temperature.json", result)
    commits = ", ".join(commit[:12] for commit in result["commits"])
    where = f"Measured at {commits} on: {start['machine']['device']}, torch {start['machine']['torch']}."
    PAGE.write_text(put(PAGE.read_text(), "cifar10-temperature", [*table(curves), "", where]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
