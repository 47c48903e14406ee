#!/usr/bin/env python
"""Trains with both losses on real photographs, on a CPU.

    python benchmarks/imagenette.py DATA     # DATA: Imagenette with train/ and val/

A ResNet-18 at 64 px trains for a few epochs; then the linear probe measures it.
The commands are printed and run, with one thread each and both losses at the same time.
The results are written to benchmarks/results/imagenette.json and .md.
An interrupted run goes on where it was. Delete runs/imagenette to start again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from moco.run.log import read_log
from moco.run.provenance import git_state, machine

ROOT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = Path("runs/imagenette"), ROOT / "benchmarks" / "results"
EPOCHS, PROBE_EPOCHS = 4, 5
COMMON = "-a resnet18 --image-size 64 --seed 0 -j 1"
PRETRAIN = f"main_moco.py {{data}} {COMMON} --mlp --aug-plus --cos -b 64 --lr 0.02 --epochs {EPOCHS} --eval-freq 1"
# MoCo's lr of 30 is for features of small norm; after four epochs of a ResNet-18 the probe diverges with it
PROBE = f"main_lincls.py {{data}} {COMMON} --epochs {PROBE_EPOCHS} --schedule 3 4 --lr 0.1"
LOSSES = {
    "InfoNCE": "--loss infonce --moco-t 0.1 --moco-k 1024 --moco-m 0.99",
    "align + uniform": "--loss align-uniform --moco-k 256 --moco-m 0.9",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", help="folder of Imagenette, with train/ and val/")
    data = shlex.quote(parser.parse_args().data)
    os.chdir(ROOT)
    folders = {"untrained": RUNS / "untrained"} | {name: RUNS / flags.split()[1] for name, flags in LOSSES.items()}
    pretraining = {
        name: f"{PRETRAIN.format(data=data)} {flags} --resume auto --output-dir {folders[name]}"
        for name, flags in LOSSES.items()
    }
    side_by_side(list(pretraining.values()))
    last = f"checkpoint_{EPOCHS - 1:04d}.pth.tar"
    probes = {
        name: f"{PROBE.format(data=data)} --output-dir {folder}-probe"
        + (f" --pretrained {folder / last}" if name in LOSSES else "")
        for name, folder in folders.items()
    }
    side_by_side([command for name, command in probes.items() if not (RUNS / f"{folders[name].name}-probe").exists()])

    rows: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        result = json.loads((folder.with_name(f"{folder.name}-probe") / "lincls.json").read_text())
        rows[name] = {"linear_top1": result["top1"], "linear_top5": result["top5"], "probe": probes[name]}
        if name in LOSSES:
            log = read_log(folder / "log.jsonl")
            found = [record["knn_top1"] for record in log if "knn_top1" in record]
            rows[name] |= {"knn_top1_by_epoch": found, "pretraining": pretraining[name], "pretrained_at": log[0]["git"]}
    table = ["| encoder | kNN top-1 | linear top-1 | linear top-5 |", "|---|---:|---:|---:|"]
    for name, row in rows.items():
        knn = f"{row['knn_top1_by_epoch'][-1]:.1f}" if name in LOSSES else "–"
        table.append(f"| {name} | {knn} | {row['linear_top1']:.1f} | {row['linear_top5']:.1f} |")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "imagenette.md").write_text("\n".join(table) + "\n")
    about = {"commit": git_state(), "machine": machine(torch.device("cpu")), "cores": os.cpu_count()}
    # the path of the data on this machine is not published
    text = json.dumps({**about, "results": rows}, indent=2).replace(data, "DATA")
    (RESULTS / "imagenette.json").write_text(text + "\n")
    print("\n".join(table))
    return 0


def side_by_side(commands: list[str]) -> None:
    """Runs the commands at the same time, with one thread each.

    Ends this program if one of them fails.
    """
    running = []
    for command in commands:
        print(f"$ OMP_NUM_THREADS=1 python {command}", flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen([sys.executable, *shlex.split(command)], env=environment))
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit("a command above failed")


if __name__ == "__main__":
    sys.exit(main())
