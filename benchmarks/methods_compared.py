"""Compares MoCo v2, v2+, v3 and multi-crop at equal processor time.

    python -m benchmarks.methods_compared cost DATA.beton
    python -m launch.sweep launch/recipes/sweep_cifar10_methods.yaml --cluster local --parallel 2 -- DATA.beton
    python -m benchmarks.methods_compared report runs/sweeps/cifar10-methods

`cost` measures what a step of each method of the recipe costs, the loading of its images included.
The methods take turns, and the ratio to v2 is taken within a turn.
From the medians it sets each method's epochs in the recipe, so that all get up to `--seconds` of processor time.
Run it with OMP_NUM_THREADS=1, as a sweep's encoders are.
`report` writes benchmarks/results/cifar10_methods.json, and the table between its two marks in docs/results.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.measuring import Times, alternate, commit, ratio
from benchmarks.results_page import COLUMNS, PAGE, RESULTS, measured_where, put, spread, spreads
from launch import spec
from moco.commands import run_command
from moco.data.source import Source, Subset
from moco.errors import InputError
from moco.pretrain.__main__ import make_encoder, make_loader, make_step
from moco.pretrain.options import ResolvedPretrainOptions
from moco.report.runs import MEASURED, Encoder, read
from moco.run.files import write_json, write_text
from moco.run.provenance import machine
from moco.world import World

RECIPE = Path(__file__).resolve().parent.parent / "launch" / "recipes" / "sweep_cifar10_methods.yaml"
RESULT = RESULTS / "cifar10_methods.json"
FIRST = "v2"  # all costs are ratios to this method's
METHODS = (FIRST, "v2+", "v3", "multi-crop")
CPU = torch.device("cpu")
STEPS = 4  # in a turn of a method
_EPOCHS = re.compile(r"(?<=\bepochs: )\d+")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("cost", help="measure the methods' steps, and set their epochs in the recipe")
    one.add_argument("data", help="the images that the sweep will train on")
    one.add_argument("--seconds", type=float, default=420, help="processor time of the training of one encoder")
    one.add_argument("--rounds", type=int, default=9)
    commands.add_parser("report", help="write the table").add_argument("sweep", type=Path)
    o = parser.parse_args(argv)
    if o.command == "report":
        report(read([o.sweep]))
        return 0
    if o.rounds < 1 or not o.seconds > 0:
        raise InputError("cost needs --rounds of at least 1 and --seconds above 0")
    costs = measured_costs(options_of_methods(o.data), o.rounds)
    epochs = equal_time(costs, o.seconds)
    write_json(RESULT, {"cost": {**costs, "epochs": epochs, "machine": machine(CPU), "commit": commit()}})
    write_text(RECIPE, with_epochs(RECIPE.read_text(), epochs))
    for method, ratio_to_v2 in costs["ratio"].items():
        print(f"{method}: an epoch costs {ratio_to_v2:.2f} × {FIRST}'s, {epochs[method]} epochs")
    print(f"wrote {RECIPE} and {RESULT}")
    return 0


def method_of(options: Mapping[str, Any]) -> str:
    """Returns the name of the method that the options train."""
    if options["keys"] == "batch":
        return "v3"
    if options["crops"]:
        return "multi-crop"
    return "v2+" if options["symmetric"] else FIRST


def options_of_methods(data: str) -> dict[str, ResolvedPretrainOptions]:
    """Returns each method's options from the recipe, in its order."""
    found = {}
    for element in spec.read(RECIPE, None, [data], 1).elements:
        found.setdefault(method_of(vars(element.pretrain)), cast("ResolvedPretrainOptions", element.pretrain))
    return found


def measured_costs(options: Mapping[str, ResolvedPretrainOptions], rounds: int) -> dict[str, Any]:
    """Measures the costs of an epoch of each method.

    Returns the processor seconds of an epoch of v2, and each method's ratio to it.
    Both are medians over rounds in which the methods take turns.
    """
    works = {method: turn_of(of_method) for method, of_method in options.items()}
    times: Times = alternate(works, rounds, CPU, warm=1, clock=time.process_time)
    of_first = options[FIRST]
    steps = len(of_first.open("train", labels_required=False)) // of_first.batch_size
    seconds = statistics.median(times[FIRST]) / STEPS
    ratios = {method: ratio(times, method, FIRST) for method in times}
    return {"seconds_of_an_epoch": seconds * steps, "ratio": ratios, "rounds": rounds, "seconds": times}


def turn_of(options: ResolvedPretrainOptions) -> Callable[[], None]:
    """Returns a function that trains a few steps of a method.

    Its time includes the loading of the images from their files.
    """
    torch.manual_seed(0)
    source: Source = options.open("train", labels_required=False)
    needed = STEPS * options.batch_size
    if len(source) < needed:
        raise InputError(f"{options.data} has {len(source)} images: cost needs at least {needed}")
    few = Subset(source, np.arange(needed))
    encoder, _ = make_encoder(options, CPU, fresh=True)
    step = make_step(options, encoder, 0, CPU, len(source.classes))
    loader = make_loader(options, few, World(), 0, CPU)
    step.guard.set_lr(options.lr / 100)  # no cost depends on it

    def turn() -> None:
        # closed, so that no batch of this method is loaded in another method's turn
        with contextlib.closing(loader.epoch(0)) as batches:
            for batch in batches:
                step(batch, 0, [len(batch.index)])

    return turn


def equal_time(costs: Mapping[str, Any], seconds: float) -> dict[str, int]:
    """Each method's number of epochs, at least 1.

    v2 gets at most `seconds` of processor time, and at least three quarters of that.
    Within these bounds v2 gets the number of epochs at which the other methods, in whole epochs, come nearest to its
    time.
    """
    most = max(1, int(seconds / costs["seconds_of_an_epoch"]))
    choices = [epochs_beside(of_first, costs["ratio"]) for of_first in range(most, math.ceil(0.75 * most) - 1, -1)]

    def deviation(epochs: Mapping[str, int]) -> float:
        return max(abs(epochs[method] * cost / epochs[FIRST] - 1) for method, cost in costs["ratio"].items())

    return min(choices, key=deviation)


def epochs_beside(of_first: int, ratios: Mapping[str, float]) -> dict[str, int]:
    """Returns the numbers of epochs that take about as long as v2's.

    of_first: number of epochs of v2.
    """
    return {method: max(1, round(of_first / cost)) for method, cost in ratios.items()}


def with_epochs(recipe: str, epochs: Mapping[str, int]) -> str:
    """Returns the recipe with these numbers of epochs in its parts.

    Its parts are in the order of METHODS.
    """
    count = len(_EPOCHS.findall(recipe))
    if count != len(METHODS):
        raise InputError(f"{RECIPE} has {count} lines with epochs: it must have one in each of {len(METHODS)} parts")
    numbers = iter([str(epochs[method]) for method in METHODS])
    return _EPOCHS.sub(lambda _: next(numbers), recipe)


def report(encoders: Sequence[Encoder]) -> None:
    """Writes the file and the table.

    InputError if an encoder has not ended, or if `cost` was not run.
    """
    unfinished = [f"{one.name} is {one.state}" for one in encoders if one.state not in MEASURED]
    if unfinished:
        raise InputError(f"{len(unfinished)} of {len(encoders)} encoders have not ended ({unfinished[0]}): go on first")
    if not RESULT.exists():
        raise InputError(f"there is no {RESULT}: run the command cost first")
    cost = json.loads(RESULT.read_text())["cost"]
    of_method = {name: [one for one in encoders if method_of(one.options) == name] for name in METHODS}
    rows = {
        name: [
            {"seed": one.options["seed"], "epochs": one.options["epochs"], "minutes": minutes_of_training(one)}
            | {column: one.measured[column] for column in COLUMNS}
            for one in its
        ]
        for name, its in of_method.items()
        if its
    }
    lines = [*table(rows, cost["ratio"]), "", measured_where(encoders), about(cost)]
    write_json(RESULT, {"cost": cost, "measured": measured_where(encoders), "encoders": rows})
    PAGE.write_text(put(PAGE.read_text(), "cifar10-methods", lines))


def table(rows: Mapping[str, list[dict[str, float]]], ratios: Mapping[str, float]) -> list[str]:
    """A row for each method; mean ± standard deviation over its seeds."""
    heading = f"method | seeds | cost of an epoch, × {FIRST} | epochs | epochs × cost | minutes"
    lines = [f"| {heading} | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * (5 + len(COLUMNS))]
    for method, its in rows.items():
        epochs = its[0]["epochs"]
        cells = [str(len(its)), f"{ratios[method]:.2f}", str(epochs), f"{ratios[method] * epochs:.1f}"]
        cells.append(spread([one["minutes"] for one in its], 1))
        cells += spreads(its, COLUMNS)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def minutes_of_training(one: Encoder) -> float:
    """Returns the minutes of training by the clock.

    They are computed from the speeds in the log, and do not include evaluation and probe.
    """
    seconds = 0.0
    before = 0
    for record in one.records:
        if record.get("kind") == "train":
            steps = record["global_step"] - before
            before = record["global_step"]
            seconds += steps * one.options["batch_size"] / record["timing"]["images_per_s"]
    return seconds / 60


def about(cost: Mapping[str, Any]) -> str:
    """Returns a line about the commit, machine and rounds of the cost."""
    return (
        f"Cost: medians of {cost['rounds']} interleaved rounds of processor time at commit {cost['commit'][:12]},"
        f" {cost['seconds_of_an_epoch']:.0f} s for an epoch of {FIRST}, on {cost['machine']['device']}."
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
