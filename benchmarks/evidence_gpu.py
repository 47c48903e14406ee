"""Trains and tests on one GPU, in stages of a few minutes.

    make evidence-gpu STAGE=data DATA=FOLDER      # unpacks archives of CIFAR-10 and Imagenette, as often as they come
    make evidence-gpu STAGE=tests                 # the GPU tests, then make bench-gpu
    make evidence-gpu STAGE=cifar10               # again and again, until it says that the run has finished

Stages: data, tests, and a name of STUDIES. A study is one run of main_moco.py with --resume auto.
Shortly before --minutes have passed, the run is told to save and end. The next call goes on with the same bits.
Each call of a stage other than data writes benchmarks/results/gpu/STAGE.json.
It then writes the table "On a GPU" of docs/results.md.
--rehearse takes a small network, few epochs and the CPU, to try the stages before a GPU is there.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.results_page import PAGE, RESULTS, ROOT, put
from moco.commands import run_command
from moco.errors import EXIT_OK, EXIT_PREEMPTED, InputError
from moco.run.files import write_json
from moco.run.log import read_log
from moco.run.provenance import git_state, machine

IMAGES = {"cifar10": "cifar10", "imagenette": "imagenette"}  # folder of images -> how its archives' names begin
SECONDS_TO_SAVE = 20.0  # between the signal and the end of --minutes


@dataclass(frozen=True)
class Study:
    """Holds one run.

    images: the folder of its images. words: its options for main_moco.py.
    published: the accuracy that others published for a similar setting.
    """

    images: str
    words: str
    published: str


_ALL = "--amp bf16 --eval-freq 10 --seed 0"
_CIFAR = f"--config launch/recipes/cifar10.yaml --dataset folder --recipe cifar --image-size 32 {_ALL}"
_IMAGENETTE = f"--config launch/recipes/imagenette.yaml --epochs 200 {_ALL}"
STUDIES = {
    "cifar10": Study("cifar10", _CIFAR, "82.6 (facebookresearch/moco's demo, 200 epochs)"),
    "cifar10-symmetric": Study("cifar10", f"{_CIFAR} --symmetric", "85.3 (the same, symmetric)"),
    "imagenette": Study("imagenette", _IMAGENETTE, "87.4 (lightly, 800 epochs; these are 200)"),
    "cifar10-align-uniform": Study("cifar10", f"{_CIFAR} --loss align-uniform", "none"),
    "imagenette-align-uniform": Study("imagenette", f"{_IMAGENETTE} --loss align-uniform", "none"),
}
_SMALL = (
    "-a smallcnn --image-size 32 --epochs 2 --batch-size 16 --moco-k 32"
    " --knn-k 5 --eval-freq 1 --amp off --bn local -j 1"
)


def main(argv: list[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", required=True, choices=("data", "tests", *STUDIES))
    parser.add_argument("--data", type=Path, default=Path("runs/evidence/data"), help="archives (%(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call (%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/evidence"), help="of the runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu", help="of the JSON files (%(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="with the table (%(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU")
    o = parser.parse_args(argv)
    deadline = started + 60 * o.minutes
    if not (o.rehearse or o.stage == "data" or torch.cuda.is_available()):
        raise InputError("torch sees no GPU; --rehearse tries the stages on the CPU")
    if o.stage == "data":
        unpack(o.data, o.output_dir / "images")
        return EXIT_OK
    if o.stage == "tests":
        found = run_tests(o.rehearse, deadline)
    else:
        found = run_study(o.stage, o.output_dir, o.rehearse, deadline)
    device = torch.device("cpu" if o.rehearse else "cuda")
    found |= {"rehearsal": o.rehearse, "commit": git_state(), "machine": machine(device)}
    o.results.mkdir(parents=True, exist_ok=True)
    write_json(o.results / f"{o.stage}.json", found)
    o.page.write_text(put(o.page.read_text(), "gpu", table(o.results)))
    print(json.dumps(found, indent=2))
    return EXIT_OK if found["ended_well"] else 1


def unpack(archives: Path, images: Path) -> None:
    """Unpacks every zip and tar file of `archives` into `images`.

    Each goes into the folder of its data set. InputError for any other file.
    """
    for path in sorted(archives.iterdir()) if archives.is_dir() else []:
        folder = next((name for name, prefix in IMAGES.items() if path.name.startswith(prefix)), None)
        if folder is None:
            raise InputError(f"{path} is no archive of {' or '.join(IMAGES)}")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                file.extractall(images / folder)
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as file:
                file.extractall(images / folder, filter="data")
        else:
            raise InputError(f"{path} is neither a zip nor a tar file, or was cut off")
        print(f"unpacked {path.name} into {images / folder}")


def run_tests(rehearse: bool, deadline: float) -> dict[str, Any]:
    """Runs the GPU tests, then the benchmarks in the time left.

    A rehearsal only collects the tests and lists the benchmarks.
    """
    tests = [sys.executable, "-m", "pytest", "-q", "tests/gpu", *(["--collect-only"] if rehearse else [])]
    bench = ["make", f"PY={sys.executable}", "bench-gpu", *(["-n"] if rehearse else [])]
    found: dict[str, Any] = {}
    for name, words in (("tests", tests), ("bench-gpu", bench)):
        found[name] = told(words, deadline - time.monotonic())
    return found | {"ended_well": all(one["code"] == 0 for one in found.values())}


def told(words: list[str], seconds: float) -> dict[str, Any]:
    """Runs a command; returns its exit code and its last lines.

    The code is None if the command did not end within `seconds`.
    """
    try:
        done = subprocess.run(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=max(seconds, 1)
        )
    except subprocess.TimeoutExpired as stopped:
        return {"code": None, "last_lines": str(stopped.output or "").splitlines()[-20:]}
    return {"code": done.returncode, "last_lines": done.stdout.splitlines()[-20:]}


def run_study(name: str, output_dir: Path, rehearse: bool, deadline: float) -> dict[str, Any]:
    """Goes on with a run until it or the time ends.

    Returns what its log holds by then.
    """
    study = STUDIES[name]
    images, folder = output_dir / "images" / study.images, output_dir / name
    if not (images / "train").is_dir():
        raise InputError(f"{images} has no train/: run STAGE=data with the archives of {study.images} first")
    words = [*study.words.split(), *(_SMALL.split() if rehearse else [])]
    command = ["main_moco.py", *words, "--resume", "auto", "--output-dir", str(folder), str(images)]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        code = process.wait(max(deadline - SECONDS_TO_SAVE - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    # before the handler is installed, the signal itself ends the process: no training had begun
    stopped = code in (EXIT_PREEMPTED, -signal.SIGTERM)
    records = read_log(folder / "log.jsonl") if (folder / "log.jsonl").exists() else []
    knn = {record["epoch"]: record["knn_top1"] for record in records if "knn_top1" in record}
    return {
        "command": " ".join(["python", *command]),
        "ended_well": code == EXIT_OK or stopped,
        "finished": code == EXIT_OK,
        "epochs": len({record["epoch"] for record in records if record.get("kind") == "epoch"}),
        "knn_top1": knn,
        "published": study.published,
    }


def table(results: Path) -> list[str]:
    """Returns a row for each study with a result, without rehearsals."""
    found = {name: json.loads(path.read_text()) for name in STUDIES if (path := results / f"{name}.json").exists()}
    real = {name: one for name, one in found.items() if not one["rehearsal"] and one["knn_top1"]}
    if not real:
        return ["Not measured."]
    lines = ["| run | epochs | kNN top-1 | published | GPU | commit |", "|---|---:|---:|---|---|---|"]
    for name, one in real.items():
        epoch, knn = list(one["knn_top1"].items())[-1]
        device = one["machine"].get("device", "")
        lines.append(
            f"| {name} | {int(epoch) + 1} | {knn:.1f} | {one['published']} | {device} | {one['commit'][:12]} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(run_command(main))
