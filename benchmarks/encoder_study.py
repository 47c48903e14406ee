"""Tests how well alignment + uniformity predicts accuracy on CIFAR-10.

    python -m launch.sweep launch/recipes/sweep_cifar10_encoders.yaml --cluster local --parallel 2 -- DATA.beton
    python -m benchmarks.encoder_study runs/sweeps/cifar10-encoders

Adds the encoders that have ended to benchmarks/results/cifar10_encoders.json; one with the same name is replaced.
So the sweep may be run in parts, on several machines.
All parts must be of one commit.
Draws docs/cifar10_encoders.png from all encoders of the file.
Writes the tables between their two marks in docs/results.md and README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import kept_encoders
from benchmarks.results_page import PAGE, README, RESULTS, ROOT, SUM, put, verdict
from moco.commands import run_command
from moco.pretrain.options import PretrainOptions
from moco.report import sweep_figures
from moco.report.plots import write_figure
from moco.report.runs import PROBE

DEFAULTS = kept_encoders.result_defaults(PretrainOptions)
FILE = RESULTS / "cifar10_encoders.json"
FIGURE = ROOT / "docs" / "cifar10_encoders.png"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    encoders, about = kept_encoders.add(FILE, parser.parse_args().sweep, [PROBE], DEFAULTS)
    write_figure(sweep_figures.plane(encoders, PROBE).figure, FIGURE)
    PAGE.write_text(put(PAGE.read_text(), "cifar10-encoders", [*verdict(encoders), "", *about]))
    README.write_text(put(README.read_text(), "cifar10-encoders", verdict(encoders, SUM)))
    print(f"{len(encoders)} encoders")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
