"""Compares InfoNCE with align + uniform, both tuned on held-out images.

    python -m benchmarks.tuned_heads split CIFAR/train HELD_OUT
    python -m launch.sweep launch/recipes/sweep_cifar10_tuning.yaml --cluster local --parallel 2 -- HELD_OUT
    python -m benchmarks.tuned_heads choose runs/sweeps/cifar10-tuning
    python -m launch.sweep launch/recipes/sweep_cifar10_tuned.yaml --cluster local --parallel 2 -- CIFAR
    python -m benchmarks.tuned_heads report runs/sweeps/cifar10-tuned

`split` links a tenth of each class of the training images as validation images, the rest as training images.
The real validation images are not used for tuning.
`choose` takes for each loss the setting of the highest linear accuracy.
It writes the recipe of the second sweep: those settings with five seeds.
It adds the encoders that have ended to benchmarks/results/cifar10_tuning.json, so the first sweep may be run in parts.
`report` writes benchmarks/results/cifar10_tuned.json.
It writes the table between its two marks in docs/results.md and README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import kept_encoders
from benchmarks.results_page import COLUMNS, PAGE, README, RESULTS, heads_table, measured_where, paired, put
from moco.commands import run_command
from moco.errors import InputError
from moco.pretrain.options import PretrainOptions
from moco.report.runs import DONE, KNN, PROBE, Encoder, read
from moco.run.files import write_json

RECIPES = Path(__file__).resolve().parent.parent / "launch" / "recipes"
TUNING, TUNED = RECIPES / "sweep_cifar10_tuning.yaml", RECIPES / "sweep_cifar10_tuned.yaml"
DEFAULTS = kept_encoders.result_defaults(PretrainOptions)
LOSSES = ("infonce", "align-uniform")
SEEDS = 5
HELD_OUT = 10  # one of so many images of a class


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("split", help="hold a tenth of the training images out")
    one.add_argument("images", type=Path, help="folder with a folder for each class")
    one.add_argument("folder", type=Path, help="gets train/ and val/ of links")
    commands.add_parser("choose", help="write the second sweep's recipe").add_argument("sweep", type=Path)
    commands.add_parser("report", help="write the table").add_argument("sweep", type=Path)
    o = parser.parse_args()
    if o.command == "split":
        hold_out(o.images, o.folder)
    elif o.command == "choose":
        choose(o.sweep)
        print(f"wrote {TUNED}")
    else:
        report(read([o.sweep]))
    return 0


def hold_out(images: Path, folder: Path) -> None:
    """Links every tenth image of a class into val/, others into train/.

    The images of a class are in the order of their names.
    """
    classes = sorted(path for path in images.iterdir() if path.is_dir())
    if not classes:
        raise InputError(f"{images} has no folders of classes")
    for of_class in classes:
        for i, image in enumerate(sorted(of_class.iterdir())):
            target = folder / ("val" if i % HELD_OUT == 0 else "train") / of_class.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(image.resolve())


def choose(sweep: Path) -> None:
    """Writes the second sweep's recipe and the table of tried settings.

    InputError if encoders are missing.
    """
    encoders, about = kept_encoders.add(RESULTS / "cifar10_tuning.json", sweep, [PROBE], DEFAULTS)
    if about[1:]:
        raise InputError(f"{about[1]} Run the sweep to its end, then choose again; what has ended is kept")
    TUNED.write_text(tuned_recipe([best(encoders, loss) for loss in LOSSES]))
    PAGE.write_text(put(PAGE.read_text(), "cifar10-tuning", [*tried(encoders), "", *about]))


def best(encoders: Sequence[Encoder], loss: str) -> Encoder:
    """Returns the encoder of a loss with the highest linear accuracy.

    The accuracy is that on the held-out training images.
    """
    return max((one for one in encoders if one.options["loss"] == loss), key=lambda one: one.measured[PROBE])


def tried(encoders: Sequence[Encoder]) -> list[str]:
    """Returns the table of tried settings.

    It has for each loss the number of settings, the range of their accuracies, and the chosen setting.
    """
    lines = ["| loss | settings | linear top-1 on held-out training images | chosen |", "|---|---:|---:|---|"]
    for loss, grid in grids().items():
        accuracies = [one.measured[PROBE] for one in encoders if one.options["loss"] == loss]
        chosen = best(encoders, loss).options
        words = ", ".join(f"{name.removeprefix('moco_')} {chosen[name]:g}" for name in grid)
        lines.append(f"| {loss} | {len(accuracies)} | {min(accuracies):.1f} to {max(accuracies):.1f} | {words} |")
    return lines


def grids() -> dict[str, dict[str, list[float]]]:
    """Returns the grid of each loss in the first sweep's recipe."""
    return {part["set"]["loss"]: part["grid"] for part in yaml.safe_load(TUNING.read_text())["parts"]}


def tuned_recipe(chosen: Sequence[Encoder]) -> str:
    """Returns the recipe of the second sweep.

    It is that of the first sweep, with the chosen settings and five seeds as its parts.
    """
    spec = yaml.safe_load(TUNING.read_text())
    grid_of = grids()
    parts = []
    for one in chosen:
        loss = one.options["loss"]
        settings = {name: one.options[name] for name in grid_of[loss]}
        parts.append({"set": {"loss": loss, **settings}, "grid": {"seed": list(range(SEEDS))}})
    spec["name"] = "cifar10-tuned"
    del spec["set"]["seed"]
    head = [
        "# InfoNCE and align + uniform on CIFAR-10, each as tuned by sweep_cifar10_tuning.yaml, with five seeds.",
        "#",
        "# paper      Wang & Isola, ICML 2020 (https://arxiv.org/abs/2005.10242), table of ImageNet-100",
        "# command    python -m launch.sweep launch/recipes/sweep_cifar10_tuned.yaml --cluster local --parallel 2"
        " -- CIFAR",
        "# hardware   two CPU cores, one thread for each encoder",
        "# hours      not measured",
        "# accuracy   docs/results.md",
        "# written    by python -m benchmarks.tuned_heads choose",
    ]
    text = yaml.safe_dump({**spec, "parts": parts}, sort_keys=False)
    return "\n".join([*head, text])


def report(encoders: Sequence[Encoder]) -> None:
    runs = {loss: sorted(by_loss(encoders, loss), key=lambda one: one.options["seed"]) for loss in LOSSES}
    seeds = [[one.options["seed"] for one in its] for its in runs.values()]
    if seeds[0] != seeds[1] or len(seeds[0]) < 2:
        raise InputError(f"the losses have the seeds {seeds[0]} and {seeds[1]}: a paired test needs the same ones")
    tests = ["| accuracy | align + uniform less InfoNCE, over seeds | paired t-test, p |", "|---|---:|---:|"]
    found: dict[str, Any] = {}
    for measure in (KNN, PROBE):
        infonce, uniform = ([one.measured[measure] for one in runs[loss]] for loss in LOSSES)
        differences, told, p = paired(uniform, infonce)
        found[measure] = {"differences": differences, "p": p}
        tests.append(f"| {COLUMNS[measure]} | {told} | {p:.2g} |")
    where = measured_where(encoders)
    rows = {loss: [{name: one.measured[name] for name in COLUMNS} for one in its] for loss, its in runs.items()}
    write_json(RESULTS / "cifar10_tuned.json", {"measured": where, "tests": found, "encoders": rows})
    both = [one for its in runs.values() for one in its]
    PAGE.write_text(put(PAGE.read_text(), "cifar10-tuned", [*heads_table(both), "", *tests, "", where]))
    accuracies = {measure: COLUMNS[measure] for measure in (KNN, PROBE)}
    README.write_text(put(README.read_text(), "cifar10-tuned", [*heads_table(both, accuracies), "", *tests, "", where]))


def by_loss(encoders: Sequence[Encoder], loss: str) -> list[Encoder]:
    return [one for one in encoders if one.options["loss"] == loss and one.state == DONE]


if __name__ == "__main__":
    sys.exit(run_command(main))
