"""Runs one element of a sweep: pretrains, probes and writes its row.

It is a job, or `python -m launch.element FOLDER JOB_FOLDER`. Its folder holds element.json (the description), a YAML
file of options for each program, pretrain/ and lincls/ or depth/ (its runs) and, in the end, row.json or failed.json.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import submitit

from launch.encoders_table import PUBLISHED
from launch.job import Job, JobFailed, Step
from moco.commands import end_with, run_command
from moco.errors import EXIT_OK
from moco.run.files import write_file, write_json, write_text
from moco.run.lock import RunLock
from moco.run.log import read_log
from moco.timing import cpu_seconds

ROW = "row.json"
FAILED = "failed.json"
DESCRIPTION = "element.json"


class Element(Job):
    """Runs one element as a job.

    place: the element's folder. folder: the folder of this submission's jobs.
    """

    def __init__(self, place: Path, folder: Path, stalled_restarts: int = 5):
        described = json.loads((place / DESCRIPTION).read_text())
        super().__init__([Step(*step) for step in described["steps"]], folder, stalled_restarts)
        self.place = place

    def __call__(self) -> None:
        if (self.place / ROW).exists():
            print(f"{self.place} is finished: nothing to do", flush=True)
            return
        if int(os.environ.get("SLURM_PROCID", 0)) != 0:
            super().__call__()
            return
        # An element submitted twice waits in two queues; the second start must not touch it
        with RunLock(self.place):
            (self.place / FAILED).unlink(missing_ok=True)
            started = time.monotonic()
            used = cpu_seconds()
            try:
                super().__call__()
                row = self.row() | {
                    "seconds": round(time.monotonic() - started, 1),
                    "cpu_seconds": round(cpu_seconds() - used, 1),
                }
            except Exception as error:
                write_json(self.place / FAILED, {"error": " ".join(str(error).split())[:500]})
                raise
            write_json(self.place / ROW, row)
        gather(self.place.parent.parent)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission | None:
        again = super().checkpoint()
        if again is None:
            write_json(self.place / FAILED, {"error": "restarts in a row saved nothing"})
        return again

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for record in read_log(self.place / "pretrain" / "log.jsonl"):
            if record["kind"] == "epoch":
                row["train_loss"] = record["loss"]  # `loss` is the name of the option, which a sweep may vary
            elif record["kind"] == "eval":
                row |= {name: value for name, value in record.items() if name.startswith(("knn_", "val_"))}
            elif record["kind"] == "start":
                row["git"] = record.get("git")
        if (result := self.place / "lincls" / "lincls.json").exists():
            found = json.loads(result.read_text())
            row |= {f"lincls_{name}": found[name] for name in ("top1", "top5", "best_top1")}
        if (result := self.place / "depth" / "depth.json").exists():
            row |= {name: value for name, value in json.loads(result.read_text()).items() if name.startswith("depth_")}
        return row


def gather(folder: Path) -> Path:
    """Collects the rows of all finished elements, in the spec's order.

    It writes results.csv, and results.parquet if pyarrow is installed.
    """
    order = json.loads((folder / "sweep.json").read_text())["elements"]
    rows = []
    for place in (folder / "elements" / id for id in order):
        if (place / ROW).exists():
            row, described = (json.loads((place / name).read_text()) for name in (ROW, DESCRIPTION))
            if "loss" in row:  # of an element before version 0.2
                row["train_loss"] = row.pop("loss")
            published = {f"{PUBLISHED}{name}": value for name, value in described.get("published", {}).items()}
            rows.append({"id": place.name, **described["swept"], **row, **published})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    target = folder / "results.csv"
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_text(target, text.getvalue())
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return target
    with contextlib.suppress(pyarrow.ArrowException):  # a column of numbers and curves has no type of Parquet's
        filled = [{name: row.get(name) for name in columns} for row in rows]
        found = pyarrow.Table.from_pylist(filled)
        write_file(target.with_suffix(".parquet"), lambda file: pyarrow.parquet.write_table(found, file))
    return target


def main(argv: list[str] | None = None) -> int:
    place, folder = map(Path, sys.argv[1:] if argv is None else argv)

    def run() -> int:
        try:
            Element(place, folder)()
        except JobFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return EXIT_OK

    return run_command(run)


if __name__ == "__main__":
    end_with(main)
