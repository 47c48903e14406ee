"""Does alignment + uniformity predict accuracy on CIFAR-10? The table and figure of docs/results.md.

    python -m launch.sweep launch/recipes/sweep_cifar10_encoders.yaml --cluster local --parallel 2 -- DATA.beton
    python -m benchmarks.encoder_study runs/sweeps/cifar10-encoders

Adds the encoders that have ended to benchmarks/results/cifar10_encoders.json; one with the same name is replaced.
So the sweep may be run in parts, on several machines.
All parts must be of one commit.
Draws docs/cifar10_encoders.png, and writes the table between its two marks from all encoders of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_page import PAGE, RESULTS, ROOT, measured_where, put, verdict
from moco.commands import run_command
from moco.errors import InputError
from moco.report import sweep_figures
from moco.report.comparison import DEFAULTS
from moco.report.plots import write_figure
from moco.report.runs import MEASURED, PROBE, Encoder, read
from moco.run.files import write_json

FILE = RESULTS / "cifar10_encoders.json"
FIGURE = ROOT / "docs" / "cifar10_encoders.png"


def row(one: Encoder) -> dict[str, Any]:
    """What is kept of an encoder: options other than the defaults, measures, commits and machine."""
    starts = [record for record in one.records if record.get("kind") == "start"]
    options = {name: value for name, value in one.options.items() if name in DEFAULTS and value != DEFAULTS[name]}
    return {
        "name": one.name,
        "state": one.state,
        "options": options,
        "measured": one.measured,
        "commits": list(one.commits),
        "machine": starts[-1]["machine"],
    }


def encoder(kept: dict[str, Any]) -> Encoder:
    """The reverse of `row`."""
    records = [{"kind": "start", "git": commit, "machine": kept["machine"]} for commit in kept["commits"]]
    return Encoder(
        kept["name"],
        Path(kept["name"]),
        state=kept["state"],
        options=DEFAULTS | kept["options"],
        records=records,
        measured=kept["measured"],
        commits=tuple(kept["commits"]),
    )


def merged(known: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows by name, new ones in place of known ones. InputError if they are of different commits."""
    rows = {kept["name"]: kept for kept in (*known, *new)}
    commits = sorted({commit[:12] for kept in rows.values() for commit in kept["commits"]})
    if len(commits) > 1:
        raise InputError(f"the encoders are of the commits {', '.join(commits)}: run all of them at one")
    return [rows[name] for name in sorted(rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    swept = read([parser.parse_args().sweep])
    known = json.loads(FILE.read_text())["encoders"] if FILE.exists() else []
    rows = merged(known, [row(one) for one in swept if one.state in MEASURED and PROBE in one.measured])
    missing = sorted({one.name for one in swept} - {kept["name"] for kept in rows})
    encoders = [encoder(kept) for kept in rows]
    where = measured_where(encoders)
    write_json(FILE, {"measured": where, "missing": missing, "encoders": rows})
    write_figure(sweep_figures.plane(encoders, PROBE).figure, FIGURE)
    lines = [*verdict(encoders), "", where]
    if missing:
        lines.append(f"{len(missing)} of {len(swept)} encoders have not been measured.")
    PAGE.write_text(put(PAGE.read_text(), "cifar10-encoders", lines))
    print(f"{len(rows)} encoders, {len(missing)} missing")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
