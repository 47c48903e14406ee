"""Averages logged values on the device, and measures a run's speed."""

from __future__ import annotations

import math
import platform
import time
from typing import Any

import torch
from torch import Tensor

from moco.distributed import all_reduce_sum
from moco.timing import timeline


class Meter:
    """Averages values over samples and ranks since the last `read`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._samples = 0

    def add(self, values: dict[str, Tensor], samples: int) -> None:
        """Adds values without a wait for the device.

        values: scalars on the device, each the mean of this rank's `samples`.
        """
        for name, value in values.items():
            weighted = value.detach().double() * samples
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        self._samples += samples

    def state(self) -> dict[str, Any]:
        """Returns the sums for a checkpoint inside an epoch.

        With them the log of a resumed run shows the same means.
        """
        return {"sums": {name: total.cpu() for name, total in self._sums.items()}, "samples": self._samples}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._samples = int(state["samples"])

    def read(self) -> dict[str, float]:
        """Returns the means and empties the meter.

        It waits for the device. All ranks must call it together.
        """
        names, totals = self.totals()
        return means(names, totals)

    def totals(self) -> tuple[list[str], Tensor | None]:
        """Returns the arguments of `means`, and empties the meter.

        It does not wait for the device. All ranks must call it together.
        """
        if not self._sums:
            return [], None
        names = list(self._sums)
        values = list(self._sums.values())
        total = all_reduce_sum(torch.stack([*values, torch.full_like(values[0], self._samples)]))
        self._sums = {}
        self._samples = 0
        return names, total


def means(names: list[str], totals: Tensor | None) -> dict[str, float]:
    """Returns each name's mean.

    totals: sums over samples and ranks, in the order of the names, and the number of samples.
    """
    if totals is None:
        return {}
    *sums, samples = totals.tolist()
    return {name: value / samples for name, value in zip(names, sums, strict=True)}


class Clock:
    """Measures the speed since the last `lap`.

    The share of time spent waiting for data is that of the stage "data wait". unit: the name of the samples.
    """

    def __init__(self, unit: str = "images") -> None:
        self._unit = unit
        self._start = time.perf_counter()
        self._waited = timeline.finished()["data wait"]
        self._samples = 0
        self._steps = 0

    def step(self, samples: int) -> None:
        self._samples += samples
        self._steps += 1

    def lap(self, device: torch.device, steps_left: int) -> dict[str, float]:
        """Returns speed, data wait, memory and time left since the last lap.

        Samples/s over all ranks, share of the time spent waiting for data, peak memory in GB, seconds to the end. It
        does not wait for the device: unfinished work counts in the next lap.
        """
        waited = timeline.finished()["data wait"]
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device) / 1e9
        else:
            memory = peak_memory() / 1e9
        values = {
            f"{self._unit}_per_s": self._samples / elapsed,
            "data_wait": (waited - self._waited) / elapsed,
            "memory_gb": memory,
            "eta_s": steps_left * elapsed / max(self._steps, 1),
        }
        self._start = now
        self._waited = waited
        self._samples = 0
        self._steps = 0
        return values


def peak_memory() -> float:
    """Returns the most bytes that this process has held; NaN on Windows."""
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes on macOS, KiB on Linux
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
