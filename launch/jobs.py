#!/usr/bin/env python
"""Lists the submitted jobs, with the state and progress of each.

    python -m launch.jobs [--index runs/jobs.jsonl] [--watch SECONDS]

It prints id, state, last step, last metric and folder of every job in the index. The state is Slurm's if Slurm lists
the job, else the one in the job's journal. submitit's own result files are not read, because ranks of a requeued job
may have left errors in them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from launch import journal
from moco.commands import Number, Parser, end_with, run_command
from moco.errors import EXIT_OK, InputError
from moco.run.log import read_log

INDEX = Path("runs/jobs.jsonl")
# the first of these that is in the log is shown
METRICS = ("val_acc1", "knn_top1", "loss")


def add(index: Path, entry: dict[str, Any]) -> None:
    journal.append(index, {"submitted": time.strftime("%Y-%m-%d %H:%M:%S"), **entry})


def read(index: Path) -> list[dict[str, Any]]:
    if not index.exists():
        raise InputError(f"there is no job index {index}; name it with --index, or submit a job first")
    return list(journal.whole_lines(index))


def slurm_states(ids: list[str]) -> dict[str, str]:
    """Returns {id: state} of the jobs that Slurm remembers.

    squeue lists the recent ones, sacct (with accounting) the others.
    """
    states: dict[str, str] = {}
    commands = (
        ["sacct", "-XnP", "-oJobID,State", "-j", ",".join(ids)],
        ["squeue", "-h", "-tall", "-o%i|%T", "-j", ",".join(ids)],
    )
    for command in commands if ids else ():
        if shutil.which(command[0]):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                told = subprocess.run(command, capture_output=True, text=True, timeout=60)
                for line in told.stdout.splitlines():
                    job, _, state = line.partition("|")
                    states[job] = state.split()[0] if state else ""
    return states


def noted_state(entry: dict[str, Any]) -> str:
    events = journal.read(Path(entry["job_folder"]) / f"{entry['id']}_events.jsonl")
    if not events:
        return "WAITING"
    last = events[-1]
    known = {"start": "RUNNING", "requeue": "WAITING", "end": "FAILED"}
    return "COMPLETED" if last.get("outcome") == "done" else known[last["event"]]


def progress(folder: Path) -> tuple[str, str]:
    """Reads (last step, last metric) from the log of a run."""
    try:
        records = read_log(folder / "log.jsonl")
    except InputError:
        return "-", "-"
    trained = [record for record in records if record["kind"] == "train"]
    measured = [record for record in records if record["kind"] in ("train", "eval")]
    step = f"epoch {trained[-1]['epoch'] + 1} step {trained[-1]['step']}" if trained else "-"
    for metric in METRICS:
        for record in reversed(measured):
            if metric in record:
                return step, f"{metric} {record[metric]:.4g}"
    return step, "-"


def table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def show(index: Path) -> str:
    entries = read(index)
    states = slurm_states([entry["id"] for entry in entries if entry["cluster"] == "slurm"])
    rows = [["id", "state", "step", "metric", "name", "folder"]]
    for entry in entries:
        state = states.get(entry["id"]) or noted_state(entry)
        rows.append([entry["id"], state, *progress(Path(entry["folder"])), entry["name"], shown(entry["folder"])])
    return table(rows)


def shown(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--index", type=Path, default=INDEX, help="file that lists the submitted jobs")
    parser.add_argument(
        "--watch",
        type=Number(float, 0.1, 86400),
        metavar="SECONDS",
        help="list them again each so many seconds, until interrupted",
    )

    def run() -> int:
        arguments = parser.parse_args(argv)
        print(show(arguments.index), flush=True)
        while arguments.watch:
            time.sleep(arguments.watch)
            print(f"\n{time.strftime('%H:%M:%S')}\n{show(arguments.index)}", flush=True)
        return EXIT_OK

    return run_command(run)


if __name__ == "__main__":
    end_with(main)
