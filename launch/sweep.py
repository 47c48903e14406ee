#!/usr/bin/env python
"""Trains many encoders and writes one table.

    python -m launch.sweep launch/recipes/sweep_imagenet100.yaml --gpus-per-node 4 --parallel 8 -- /data/imagenet100
    python -m launch.sweep launch/recipes/sweep_digits.yaml --cluster local --parallel 2    # here, two processes
    python -m launch.sweep status launch/recipes/sweep_digits.yaml --watch 10

Every element of the spec (launch/spec.py) pretrains, is probed and writes one row; results.csv is always up to date. On
Slurm the elements are one job array. Started again, a sweep skips what is finished, goes on with what was interrupted
and retries what failed. Options after `--` are main_moco.py's, for all elements.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from launch import jobs, options_file, snapshot, spec, submitit_job
from launch.element import DESCRIPTION, FAILED, ROW, Element, gather
from moco.commands import Number, Parser, end_with, run_command
from moco.errors import EXIT_PREEMPTED, InputError
from moco.run.files import write_json
from moco.run.log import read_log


def prepare(sweep: spec.Spec, folder: Path) -> list[Path]:
    """Writes each element's description; returns the folders of unfinished ones."""
    places = []
    for element in sweep.elements:
        place = folder / "elements" / element.id
        steps = [options_file.write(element.main, element.pretrain, place / f"{element.main}.yaml")]
        if element.probe:
            probe = options_file.main_of_probe(element.probe)
            steps.append(options_file.write(probe, element.probe, place / f"{probe}.yaml"))
        epochs = [element.pretrain.epochs, element.probe.epochs if element.probe else 0]
        described = {"swept": element.swept, "steps": steps, "epochs": epochs}
        write_json(place / DESCRIPTION, described | ({"published": element.published} if element.published else {}))
        places.append(place)
    write_json(folder / "sweep.json", {"name": sweep.name, "elements": [place.name for place in places]})
    return [place for place in places if not (place / ROW).exists()]


def run(o: argparse.Namespace, words: list[str]) -> int:
    ranks = o.nodes * submitit_job.tasks_per_node(o)
    if o.cluster == "local" and ranks > 1:
        raise InputError(
            f"--cluster local trains each element with one process, not with {ranks}: leave out --nodes,"
            " --tasks-per-node and --gpus-per-node, and set --parallel"
        )
    sweep = spec.read(o.spec, o.output_dir, words, ranks)
    folder = sweep_folder(o).absolute()
    if o.dry_run:
        for element in sweep.elements:
            print(element.id, described(element.swept))
        print(f"{len(sweep.elements)} elements, {o.parallel} at a time, to {jobs.shown(str(folder))}")
        return 0
    waiting = prepare(sweep, folder)
    print(f"{len(sweep.elements)} elements in {jobs.shown(str(folder))}, {len(waiting)} to do", flush=True)
    if not waiting:
        gather(folder)
        return 0
    job_folder = submitit_job.fresh_folder(folder / "jobs")
    code = snapshot.take(job_folder / "code")
    if o.cluster == "local":
        return run_here(waiting, job_folder, code, o.parallel, folder)
    # Slurm does not know %A for a single job, which is no array
    runner = submitit_job.executor(
        o, job_folder / ("%A" if len(waiting) > 1 else "%j"), code, o.name or sweep.name, array_parallelism=o.parallel
    )
    submitted = submitit_job.hand_over(runner, [Element(place, job_folder, o.stalled_restarts) for place in waiting])
    for job, place in zip(submitted, waiting, strict=True):
        entry = {"id": job.job_id, "cluster": o.cluster, "name": sweep.name}
        jobs.add(o.index, {**entry, "folder": str(place / "pretrain"), "job_folder": str(job_folder)})
    print(f"job {submitted[0].job_id.split('_')[0]}; python -m launch.sweep status {o.spec}", flush=True)
    return 0


def run_here(places: list[Path], job_folder: Path, code: Path, parallel: int, folder: Path) -> int:
    """Runs a process for each element, `parallel` at a time.

    After an interruption it lets running ones save first.
    """
    running: dict[Path, subprocess.Popen[bytes]] = {}
    stopping = threading.Event()

    def one(place: Path) -> int:
        if stopping.is_set():
            return EXIT_PREEMPTED
        with open(place / "output.log", "ab") as out:
            command = [*shlex.split(snapshot.python(code)), "-m", "launch.element", str(place), str(job_folder)]
            # in its own session, so Ctrl-C reaches only this process, which then lets them save
            running[place] = process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        if stopping.is_set():  # the signal came between the check above and the start
            process.send_signal(signal.SIGTERM)
        result = process.wait()
        del running[place]
        print(f"{place.name}  {'done' if result == 0 else f'exit code {result}, see {place}/output.log'}", flush=True)
        return result

    def stop(number: int, frame: Any) -> None:
        stopping.set()
        for process in list(running.values()):
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(parallel) as pool:
            results = list(pool.map(one, places))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"{results.count(0)} of {len(results)} done; {gather(folder)}")
    return 1 if any(results) else 0


# -- status -----------------------------------------------------------------------------------------------------------


def status(folder: Path) -> str:
    if not (folder / "sweep.json").exists():
        raise InputError(f"there is no sweep in {folder}; start it first, or name its folder with --output-dir")
    ids = json.loads((folder / "sweep.json").read_text())["elements"]
    rows = [["element", "state", "pretraining", "probe", "loss", "kNN", "top-1 or MSE", "options"]]
    states = []
    for id in ids:
        row = element_status(folder / "elements" / id)
        states.append(row[1])
        rows.append([id, *row[1:]])
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    width = min(60, shutil.get_terminal_size().columns - 30)
    filled = width * counts.get("done", 0) // max(1, len(ids))
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{jobs.table(rows)}\n[{'#' * filled}{'.' * (width - filled)}] {len(ids)} elements: {summary}"


def element_status(place: Path) -> list[str]:
    what = json.loads((place / DESCRIPTION).read_text())
    probe = "depth" if (place / "depth").exists() else "lincls"
    logs = [_records(place / part / "log.jsonl") for part in ("pretrain", probe)]
    epochs = [sum(record["kind"] == "epoch" for record in log) for log in logs]
    bars = [f"{done}/{all_}" for done, all_ in zip(epochs, what["epochs"], strict=True)]
    if (place / ROW).exists():
        state = "done"
    elif (place / FAILED).exists():
        state = "failed"
    elif (place / ".lock").exists():
        age = time.time() - max((p.stat().st_mtime for p in place.glob("*/log.jsonl")), default=time.time())
        state = f"running, silent for {age:.0f} s" if age > 300 else "running"
    else:
        state = "interrupted" if any(logs) else "waiting"
    shown = ((logs[0], "loss"), (logs[0], "knn_top1"), (logs[1], "depth_mse" if probe == "depth" else "val_acc1"))
    return ["", state, *bars, *(_last(log, name) for log, name in shown), described(what["swept"])]


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return read_log(path)
    except InputError:
        return []


def _last(records: list[dict[str, Any]], name: str) -> str:
    return next((f"{record[name]:.4g}" for record in reversed(records) if name in record), "-")


def described(swept: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in swept.items())


def sweep_folder(o: argparse.Namespace) -> Path:
    return o.output_dir or Path("runs/sweeps") / (spec.name_of(o.spec))


def show_status(argv: list[str]) -> int:
    parser = Parser(prog="sweep.py status", description="How far each element is.")
    parser.add_argument("spec", type=Path, help="YAML file of the sweep")
    parser.add_argument(
        "--output-dir", type=Path, metavar="FOLDER", help="folder of the sweep; default: runs/sweeps/NAME"
    )
    parser.add_argument(
        "--watch",
        type=Number(float, 0.1, 86400),
        metavar="SECONDS",
        help="say it again each so many seconds, until interrupted",
    )
    o = parser.parse_args(argv)
    folder = sweep_folder(o)
    text = status(folder)
    gather(folder)
    while o.watch:
        print(f"\033[2J\033[H{text}" if sys.stdout.isatty() else text, flush=True)
        time.sleep(o.watch)
        text = status(folder)
    print(f"{text}\ntable: {jobs.shown(str(gather(folder)))}")
    return 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def work() -> int:
        if argv[:1] == ["status"]:
            return show_status(argv[1:])
        mine, words, _ = submitit_job.split_at_dashes(argv)
        parser = submitit_job.build_parser((__doc__ or "").splitlines()[0])
        parser.add_argument("spec", type=Path, help="YAML file of the sweep; launch/spec.py describes it")
        parser.add_argument(
            "--parallel", type=Number(int, 1), default=2, help="with --cluster local: number of encoders at a time"
        )
        parser.add_argument(
            "--output-dir", type=Path, metavar="FOLDER", help="folder of the sweep; default: runs/sweeps/NAME"
        )
        o = parser.parse_args(mine)
        if o.cluster == "debug":
            raise InputError("a sweep takes --cluster slurm or --cluster local; pass one of them")
        submitit_job.check(o)
        return run(o, words)

    return run_command(work)


if __name__ == "__main__":
    end_with(main)
