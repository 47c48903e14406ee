#!/usr/bin/env python
"""Pretrains with two losses, probes the checkpoints and compares them.

    make quickstart

It takes a few minutes on two CPU cores. The data are scikit-learn's digits: 1,797 scans, a fixed fifth held out.
`main_moco.py` trains on them without labels in two processes, once with InfoNCE and once with alignment + uniformity.
Then three classifiers measure each frozen encoder, and the untrained one that both runs start from.
They are k nearest neighbours, `main_lincls.py` with all labels, and a linear one with five labels per class.
Every command is shown as it is run, so each can be repeated by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.datasets import open_split
from moco.encoders import build_encoder, trunk
from moco.evaluate.features import centre_crops, extract_features, settle_batchnorm
from moco.evaluate.online import OnlineEvaluator
from moco.pretrain.options import parse_pretrain
from moco.probe.logistic import few_label_accuracy
from moco.report import figures
from moco.run import checkpoint
from moco.run.log import read_log
from moco.run.provenance import git_state, machine

ROOT = Path(__file__).resolve().parent.parent
ARCH, DIM, SIZE = "smallcnn", 64, 32
EPOCHS, PROBE_EPOCHS = 40, 30
# --local-addr: without it torchrun looks up this machine's own name, which not every laptop and container resolves
LAUNCH = "torchrun --local-addr localhost --nproc_per_node=2 main_moco.py"
# 144 scans of each digit: the usual 200 neighbours would reach into other classes
DATA = "--dataset digits -j 2 --print-freq 100"
PRETRAIN = f"{DATA} -a {ARCH} --moco-dim {DIM} --batch-size 128 --lr 0.06 --cos --eval-freq 4 --knn-k 20 --save-freq 10"
# MoCo's lr 30 is for a million images an epoch and 2048 features; these runs have 22 steps an epoch and 128
PROBE = f"main_lincls.py {DATA} --batch-size 64 --lr 3"
LOSSES = {
    "InfoNCE": ("infonce", "--loss infonce --moco-t 0.1 --moco-k 1024 --moco-m 0.99"),
    # With a slower key encoder this loss does not fall: early features are nearly parallel, and its keys stay so
    "align + uniform": ("align-uniform", "--loss align-uniform --moco-k 256 --moco-m 0.9"),
}
CPU = torch.device("cpu")
# Figures of several seeds, measured by benchmarks/quickstart_range.py
RANGES = ROOT / "benchmarks" / "results" / "quickstart.json"
MEASURES = {"knn": "kNN", "linear": "linear", "few_label": "5 labels per class"}


@dataclass
class Encoder:
    """Holds one row of the table."""

    name: str
    folder: Path
    checkpoint: Path
    records: list[dict[str, Any]]
    knn: float = 0.0  # percent, as all accuracies
    linear: float = 0.0
    few: float = 0.0  # mean over the draws of labels
    few_std: float = 0.0
    features: Any = None
    labels: Any = None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart"), help="emptied first (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of pretraining (%(default)s)")
    parser.add_argument("--probe-epochs", type=int, default=PROBE_EPOCHS, help="of the linear probe (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, augmentation and order (%(default)s)")
    arguments = parser.parse_args(argv)
    out, seed = arguments.output_dir, arguments.seed
    started = time.monotonic()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)

    encoders = [untrained(out / "untrained", seed)]
    for name, (short, flags) in LOSSES.items():
        folder = out / short
        say(f"pretraining: {name}")
        run(f"{LAUNCH} {PRETRAIN} --seed {seed} --epochs {arguments.epochs} {flags} --output-dir {folder}")
        last = folder / f"checkpoint_{arguments.epochs - 1:04d}.pth.tar"
        encoders.append(Encoder(name, folder, last, read_log(folder / "log.jsonl")))
    for encoder in encoders:
        say(f"linear probe: {encoder.name}")
        encoder.linear = probe(encoder, arguments.probe_epochs, seed)
    say("kNN and few-label classifiers")
    for encoder in encoders:
        measure(encoder, seed)

    table = markdown(encoders)
    figure = draw(encoders, out / "quickstart.png")
    seconds = time.monotonic() - started
    (out / "results.md").write_text(table + "\n")
    results = as_json(encoders, seconds)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    say(f"digits: top-1 [%] on {len(encoders[0].labels)} held-out scans, {seconds:.0f} s in all")
    print(table, end="\n\n")
    for encoder in encoders[1:]:
        print(f"{encoder.name}: {gain(encoder, encoders[0])}")
    if (arguments.epochs, arguments.probe_epochs) == (EPOCHS, PROBE_EPOCHS) and RANGES.is_file():
        print("\n".join(["", *placed(results["results"], json.loads(RANGES.read_text()))]))
    print(f"\ncheckpoints  {'  '.join(str(e.checkpoint) for e in encoders[1:])}")
    print(f"logs         {'  '.join(str(e.folder / 'log.jsonl') for e in encoders[1:])}")
    print(f"             tensorboard --logdir {out}")
    print(f"figure       {figure}\ntable        {out / 'results.md'}  {out / 'results.json'}")
    return 0


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def run(command: str) -> None:
    """Shows a command and runs it.

    Its program is that of this interpreter's environment. If it fails, this program ends too.
    """
    program, *arguments = shlex.split(command)
    programs = Path(sys.executable).parent
    if programs.is_relative_to(ROOT):
        programs = programs.relative_to(ROOT)
    words = [str(programs / program), *arguments]
    # One thread per process: the ranks share the cores, and two threads each would only wait for one another
    print(f"$ OMP_NUM_THREADS=1 {shlex.join(words)}", flush=True)
    done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.returncode)


def untrained(folder: Path, seed: int) -> Encoder:
    """Makes the encoder that both runs start from, without training.

    It has BatchNorm statistics of the data, and is saved as a checkpoint like the others.
    """
    torch.manual_seed(seed)
    encoder = build_encoder(ARCH, DIM)
    options, recipe = parse_pretrain(shlex.split(PRETRAIN)), find_recipe("digits")
    train, val = (open_split(None, "digits", split) for split in ("train", "val"))
    settle_batchnorm(encoder, train, recipe, SIZE, options, CPU)
    evaluate = OnlineEvaluator(train, val, options, CPU, recipe="digits", size=SIZE, seed=seed, k=options.knn_k)
    values = dict(evaluate(encoder))
    state = {f"module.encoder_q.{name}": tensor for name, tensor in encoder.state_dict().items()}
    folder.mkdir(parents=True)
    path = folder / "checkpoint.pth.tar"
    checkpoint.save(path, {"epoch": 0, "arch": ARCH, "state_dict": state})
    return Encoder("untrained", folder, path, [{"kind": "eval", "epoch": -1, **values}])


def probe(encoder: Encoder, epochs: int, seed: int) -> float:
    folder = encoder.folder / "lincls"
    drops = f"{epochs * 6 // 10} {epochs * 8 // 10}"  # as MoCo's 60 and 80 of 100
    schedule = f"--seed {seed} --epochs {epochs} --schedule {drops}"
    run(f"python {PROBE} {schedule} --pretrained {encoder.checkpoint} --output-dir {folder}")
    return last_value(folder / "log.jsonl", "val_acc1")


def last_value(log: Path, name: str) -> float:
    return float([record[name] for record in read_log(log) if name in record][-1])


def measure(encoder: Encoder, seed: int) -> None:
    """Sets an encoder's features, labels, kNN and few-label accuracies.

    The features are those of the trunk, of the plain scans. The few-label classifier trains on them.
    The kNN accuracy is the last one in the records.
    """
    network = build_encoder(ARCH, DIM)
    state = checkpoint.load(encoder.checkpoint)["state_dict"]
    prefix = "module.encoder_q."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    options, recipe = parse_pretrain(shlex.split(PRETRAIN)), find_recipe("digits")
    plain = Augment(recipe.for_evaluation(), seed)
    bank, held_out = (
        extract_features(
            trunk(network), centre_crops(open_split(None, "digits", split), recipe, SIZE, options, CPU), plain
        )
        for split in ("train", "val")
    )
    encoder.few, encoder.few_std = few_label_accuracy(*bank, *held_out)
    encoder.features, encoder.labels = nn.functional.normalize(held_out[0], dim=1).numpy(), held_out[1].numpy()
    encoder.knn = [record["knn_top1"] for record in encoder.records if "knn_top1" in record][-1]


def markdown(encoders: list[Encoder]) -> str:
    lines = [
        f"| {'encoder':<15} | kNN   | linear | 5 labels per class |",
        f"|{'-' * 17}|------:|-------:|-------------------:|",
    ]
    for e in encoders:
        lines.append(f"| {e.name:<15} | {e.knn:5.1f} | {e.linear:6.1f} | {f'{e.few:.1f} ± {e.few_std:.1f}':>18} |")
    return "\n".join(lines)


def gain(encoder: Encoder, base: Encoder) -> str:
    parts = (
        ("kNN", encoder.knn - base.knn),
        ("linear", encoder.linear - base.linear),
        ("few-label", encoder.few - base.few),
    )
    return "over the untrained encoder: " + ", ".join(f"{name} {difference:+.1f}" for name, difference in parts)


def placed(results: dict[str, Any], ranges: dict[str, Any]) -> list[str]:
    """Compares this run's figures with those of several seeds.

    Returns a line for each figure, with the range that the same command gave over the seeds.
    """
    lines = [f"beside {len(ranges['seeds'])} seeds measured before ({RANGES.relative_to(ROOT)}):"]
    for name, values in ranges["results"].items():
        for measure, title in MEASURES.items():
            # compared as printed, so that a line never says 90.1 is above 90.1
            own, lowest, highest = (
                round(x, 1) for x in (results[name][measure], min(values[measure]), max(values[measure]))
            )
            where = "below the range" if own < lowest else "above the range" if own > highest else "in the range"
            lines.append(f"{name:<16} {title:<19} {own:5.1f}  {where} {lowest:.1f} to {highest:.1f}")
    return lines


def as_json(encoders: list[Encoder], seconds: float) -> dict[str, Any]:
    rows = {
        e.name: {
            "knn": e.knn,
            "linear": e.linear,
            "few_label": e.few,
            "few_label_std": e.few_std,
            "checkpoint": str(e.checkpoint),
        }
        for e in encoders
    }
    return {
        "results": rows,
        "seconds": round(seconds, 1),
        "commit": git_state(),
        "machine": machine(CPU),
        "cores": os.cpu_count(),
    }


def draw(encoders: list[Encoder], path: Path) -> Path:
    pictured = [
        figures.Pictured(
            e.name,
            e.records,
            e.features,
            e.labels,
            f"kNN {e.knn:.1f}      linear {e.linear:.1f}      5 labels per class {e.few:.1f} ± {e.few_std:.1f}",
        )
        for e in encoders
    ]
    title = "Quickstart: scikit-learn's digits, top-1 [%] on held-out scans"
    return figures.comparison(pictured, [str(digit) for digit in range(10)], title, path)


if __name__ == "__main__":
    sys.exit(main())
