"""Finds the settings with which the hard contrastive loss collapses.

    python -m launch.sweep launch/recipes/sweep_imagenette_hard.yaml --cluster local --parallel 2 -- DATA
    python -m benchmarks.hard_collapse runs/sweeps/imagenette-hard

Reads the encoders of a sweep.
Writes benchmarks/results/imagenette_hard.json, and the table between its two marks in docs/results.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from benchmarks.results_page import PAGE, RESULTS, measured_where, put
from moco.commands import run_command
from moco.losses.hard import hard_count
from moco.report.runs import MEASURED, Encoder, read
from moco.run.files import write_json

SETTINGS = {"moco_m": "m", "moco_hard_alpha": "α", "moco_k": "K", "lr": "lr", "seed": "seed"}
MEASURES = {"knn_top1": "kNN top-1", "val_alignment": "alignment", "val_uniformity": "uniformity"}


def row(encoder: Encoder) -> dict[str, float]:
    """Returns the settings, measures and losses of an encoder.

    `loss` is the mean over the last epoch.
    `loss_of_a_point` is the loss if all features are the same point: log(1 + hard negatives).
    """
    options = encoder.options
    found = {name: options[name] for name in SETTINGS} | {name: encoder.measured[name] for name in MEASURES}
    found["loss"] = [record["loss"] for record in encoder.records if record["kind"] == "epoch"][-1]
    found["loss_of_a_point"] = math.log(1 + hard_count(options["moco_hard_alpha"], options["moco_k"]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    encoders = [one for one in read([parser.parse_args().sweep]) if one.state in MEASURED]
    rows = sorted((row(one) for one in encoders), key=lambda found: found["val_uniformity"], reverse=True)
    where = measured_where(encoders)
    write_json(RESULTS / "imagenette_hard.json", {"measured": where, "encoders": rows})
    lines = [f"| {' | '.join([*SETTINGS.values(), *MEASURES.values()])} | loss | log(1 + hard negatives) |"]
    lines.append("|" + "---:|" * (len(SETTINGS) + len(MEASURES) + 2))
    for found in rows:
        cells = [f"{found[name]:g}" for name in SETTINGS]
        cells += [f"{found[name]:.{1 if name == 'knn_top1' else 3}f}" for name in MEASURES]
        lines.append(f"| {' | '.join(cells)} | {found['loss']:.3f} | {found['loss_of_a_point']:.3f} |")
    PAGE.write_text(put(PAGE.read_text(), "imagenette-hard", [*lines, "", where]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
