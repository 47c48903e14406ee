#!/usr/bin/env python
"""Measures how much loss curves differ between the folder and FFCV.

    python benchmarks/loader_curves.py DATA [FILE.beton ...]     # DATA: a folder with train/; files written from it

A small CNN trains once per source, with one seed and deterministic kernels, so only the decoded pixels differ.
It trains once more through the folder, with a learning rate that is higher by one part in 10⁷.
This shows how much such curves differ because of rounding alone.
Without FILE, raw and JPEG files are written to runs/loader_curves/.
"""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.measuring import Row, parser, report
from moco.run.log import read_log

ROOT = Path(__file__).resolve().parent.parent

RUNS, EPOCHS = ROOT / "runs" / "loader_curves", 2
TRAIN = (
    "main_moco.py {data} -a smallcnn --image-size 64 --mlp --aug-plus --cos -b 128 --lr {lr} --moco-k 1024"
    f" --moco-m 0.99 --moco-t 0.1 --epochs {EPOCHS} --eval-freq 0"
    " --seed 0 -p 1 -j 1 --deterministic --no-tensorboard --resume auto"
)
LR = 0.06


def main() -> int:
    options = parser(__doc__)
    options.add_argument("data", help="a folder with train/")
    options.add_argument("betons", nargs="*", type=Path, help=".beton files of the same images")
    o = options.parse_args()
    betons = o.betons or [written(o.data, mode) for mode in ("raw", "jpg")]
    runs = {"folder": train(o.data, LR, "folder")}
    runs |= {f"FFCV, {path.stem}": train(str(path), LR, path.stem) for path in betons}
    runs["folder, learning rate one part in 10⁷ higher"] = train(o.data, LR * (1 + 1e-7), "rounding")
    folder = runs.pop("folder")
    rows = [
        Row("loss of each epoch, largest difference", f"folder: {name}", epochs_apart(losses, folder), "", None, 0.05)
        for name, losses in runs.items()
    ]
    first = len(folder) // EPOCHS // 4
    rows += [
        Row(f"loss of the first {first} steps, largest difference", f"folder: {name}", apart(losses, folder, first), "")
        for name, losses in runs.items()
    ]
    report("loader_curves", o, rows, command=f"python {TRAIN.format(data='DATA', lr=LR)}", folder=folder, **runs)
    return 0


def written(data: str, mode: str) -> Path:
    path = RUNS / f"{mode}.beton"
    if not path.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "moco.data.beton", "write", data, str(path), "--mode", mode], check=True)
    return path


def train(data: str, lr: float, name: str) -> list[float]:
    """Trains a run and returns the loss of every step."""
    command = shlex.split(TRAIN.format(data=shlex.quote(data), lr=lr)) + ["--output-dir", str(RUNS / name)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    records = read_log(RUNS / name / "log.jsonl")
    return [record["loss"] for record in records if record["kind"] == "train"]


def epochs_apart(one: list[float], other: list[float]) -> float:
    steps = len(one) // EPOCHS
    means = ([statistics.fmean(run[i : i + steps]) for i in range(0, len(run), steps)] for run in (one, other))
    return max(abs(a - b) for a, b in zip(*means, strict=True))


def apart(one: list[float], other: list[float], steps: int) -> float:
    return max(abs(a - b) for a, b in zip(one[:steps], other[:steps], strict=True))


if __name__ == "__main__":
    sys.exit(main())
