"""Measures the range of the quickstart's figures over several seeds.

    python -m benchmarks.quickstart_range --seeds 5

Runs `examples/quickstart.py` for one seed after the other.
Writes benchmarks/results/quickstart.json, and the table between its two marks in README.md.
The quickstart reads that file, and compares its own figures with the range.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_page import README, RESULTS, put
from examples.quickstart import MEASURES, ROOT
from moco.commands import run_command
from moco.run.files import write_json


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="0 to one less than this (%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart_seeds"), help="%(default)s")
    o = parser.parse_args()
    measured = []
    for seed in range(o.seeds):
        folder = o.output_dir / f"seed{seed}"
        if not (folder / "results.json").is_file():
            words = [sys.executable, "examples/quickstart.py", "--seed", str(seed), "--output-dir", str(folder)]
            subprocess.run(words, cwd=ROOT, check=True)
        measured.append(json.loads((folder / "results.json").read_text()))
    write_json(RESULTS / "quickstart.json", summary(measured))
    README.write_text(put(README.read_text(), "quickstart", table(summary(measured))))
    return 0


def summary(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of the JSON file.

    Each measure of each encoder is a list over the seeds. Commit and machine are those in the runs' results.
    """
    names = measured[0]["results"]
    return {
        "command": f"python -m benchmarks.quickstart_range --seeds {len(measured)}",
        "seeds": list(range(len(measured))),
        "results": {
            name: {measure: [one["results"][name][measure] for one in measured] for measure in MEASURES}
            for name in names
        },
        "commit": sorted({str(one["commit"]) for one in measured}),
        "machine": measured[0]["machine"],
        "cores": measured[0]["cores"],
        "seconds": [one["seconds"] for one in measured],
    }


def table(found: dict[str, Any]) -> list[str]:
    """A row for each encoder: lowest and highest of each measure."""
    lines = [f"| digits, top-1 [%] | {' | '.join(MEASURES.values())} |", "|---|" + "---:|" * len(MEASURES)]
    for name, values in found["results"].items():
        cells = [f"{min(values[measure]):.1f} to {max(values[measure]):.1f}" for measure in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    sys.exit(run_command(main))
