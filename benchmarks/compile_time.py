"""Measures the CPU time that torch's compiler takes for a step's parts.

    python -m benchmarks.compile_time

Inductor traces and schedules for an H100, on a pretended GPU, up to the code that needs a real GPU.
The time that Triton and the GPU's assembler take afterwards is not measured, because neither is used here.
It needs a CPU build of torch and a C++ compiler.
"""

from __future__ import annotations

# isort: off
import tests.gpu.pretended.shim  # noqa: F401  # before torch

# isort: on
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from benchmarks.measuring import Row, parser, report
from moco.data.augment.recipes import find_recipe
from moco.losses.logsumexp import softmax_of_rows
from tests.gpu.pretended.lowering import augmentation, lowered


def cpu_seconds(work: Callable[[], Any], rounds: int) -> list[float]:
    """Returns the CPU seconds of each round.

    The first round of a new process takes longer than the others.
    """
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return seconds


def softmax(rows: int, columns: int) -> None:
    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty((rows, columns), device="cuda:0")
        lowered(torch.func.functionalize(softmax_of_rows), x, torch.empty((rows, 1), device="cuda:0"))


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(argv)
    images = 2 if options.trial else 256
    view = find_recipe("v2").view(0)
    found = {
        "augmentations of a view": cpu_seconds(lambda: augmentation(view, images), options.rounds),
        "log-sum-exp": cpu_seconds(lambda: softmax(images, 8192), options.rounds),
    }
    rows = [
        Row(f"{name}: traced and scheduled", "–", statistics.median(seconds), unit="s")
        for name, seconds in found.items()
    ]
    report("compile_time", options, rows, seconds=found)


if __name__ == "__main__":
    main()
