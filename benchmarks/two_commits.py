"""Compares the speed of start-up, training step and loader of two commits.

    python -m benchmarks.two_commits OLD [NEW]        # NEW: HEAD, if it is not given

Both commits are checked out beside each other. The same commands of `main_moco.py` run from both at the same time.
Each has a core of its own, and they exchange the cores from round to round.
So what else the machine does slows both down alike. With a single core they run one after the other.
  start-up  `--dry-run`: imports, options and their checks; seconds of the whole process
  step      the digits with a small encoder; seconds of an image, from the run's log.
            With the default BatchNorm, split into groups, and with torch's own (`--bn local`)
  loader    crops of 32 px from JPEG files of 500×375, decoded by one thread; seconds of an image, from the run's log
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data_loading import made_up_photos
from benchmarks.measuring import Row, Times, parser, ratio, report
from moco.commands import run_command
from moco.errors import InputError
from moco.run.log import read_log

ROOT = Path(__file__).resolve().parent.parent
MOST = 1.03  # times the older commit's cost
SMALL = ["--device", "cpu", "--seed", "0", "-j", "1", "--moco-dim", "32", "-b", "64", "--eval-freq", "0"]
DIGITS = ["--dataset", "digits", *SMALL, "-a", "smallcnn", "--moco-k", "1024"]
PHOTOS = [*SMALL, "-a", "smallcnn", "--image-size", "32", "--moco-k", "64"]


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("old", help="the commit to compare with")
    options.add_argument("new", nargs="?", default="HEAD")
    with tempfile.TemporaryDirectory() as scratch:
        run(options.parse_args(argv), Path(scratch))
    return 0


def run(options: Any, scratch: Path) -> None:
    if options.device != "cpu":
        raise InputError("two_commits measures on the CPU alone: leave out --device")
    trees = {name: checked_out(getattr(options, name), scratch / name) for name in ("old", "new")}
    epochs = 1 if options.trial else 2
    photos = scratch / "photos" / "train"
    made_up_photos(photos, 128 if options.trial else 512)
    works: dict[str, Callable[[Path, int], float]] = {
        "start-up": start_up,
        "training step": partial(seconds_of_an_image, [*DIGITS, "--epochs", str(epochs)]),
        "training step, --bn local": partial(seconds_of_an_image, [*DIGITS, "--epochs", str(epochs), "--bn", "local"]),
        "loader": partial(seconds_of_an_image, [*PHOTOS, "--epochs", str(epochs), str(photos.parent)]),
    }
    costs: dict[str, Times] = {what: {name: [] for name in trees} for what in works}
    cores = sorted(os.sched_getaffinity(0))[:2]
    with ThreadPoolExecutor(len(cores)) as pool:
        for turn in range(1 + options.rounds):
            for what, work in works.items():
                names = sorted(trees, reverse=turn % 2 == 1)
                runs = [pool.submit(work, trees[name], cores[i % len(cores)]) for i, name in enumerate(names)]
                found = [run.result() for run in runs]
                if turn:  # the first reads the files from the disk
                    for name, cost in zip(names, found, strict=True):
                        costs[what][name].append(cost)
    rows = [
        Row(what, f"commit {commit_of(options.old)[:10]}", ratio(of_commits, "new", "old"), at_most=MOST)
        for what, of_commits in costs.items()
    ]
    report("two_commits", options, rows, seconds=costs, compared=[commit_of(options.old), commit_of(options.new)])


def commit_of(name: str) -> str:
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--verify", "-q", f"{name}^{{commit}}"],
                           capture_output=True, text=True)  # fmt: skip
    if found.returncode:
        raise InputError(f"{name} is no commit of this repository; git log lists them")
    return found.stdout.strip()


def checked_out(name: str, folder: Path) -> Path:
    """Writes the files of a commit into `folder` and returns it."""
    folder.mkdir(parents=True)
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit_of(name)], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


def start_up(tree: Path, core: int) -> float:
    """Returns the seconds of a run that stops after its options."""
    before = time.perf_counter()
    start(tree, core, [*DIGITS, "--dry-run"])
    return time.perf_counter() - before


def seconds_of_an_image(words: list[str], tree: Path, core: int) -> float:
    """Returns the median of the seconds of an image in a run.

    It is taken over the printed lines, without the first, which includes the start of the threads.
    """
    output = tree / "run"
    start(tree, core, [*words, "--no-tensorboard", "--print-freq", "1", "--output-dir", str(output)])
    records = read_log(output / "log.jsonl")
    shutil.rmtree(output)
    lines = [record for record in records if record.get("kind") == "train"]
    return statistics.median(1 / record["timing"]["images_per_s"] for record in lines[1:])


def start(tree: Path, core: int, words: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = ["taskset", "--cpu-list", str(core), sys.executable, "main_moco.py", *words]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: in {tree.name}, main_moco.py {' '.join(words)}:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    sys.exit(run_command(main))
