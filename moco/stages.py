"""Where the time of a step goes: every moment belongs to one stage, on the device's own clock, without waiting for it.

    with stage("key"):
        with stage("augmentation"): ...      # counted there, not to "key" as well

On a CPU the clock is the processor's. On a GPU an event goes into the stream at each change of stage; `totals` reads
them, for which a printed line is the moment, as the host waits for the device there anyway. Inside torch.profiler the
stages are ranges of the trace. There is one timeline per process, as there is one training, in the thread that trains.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Seconds = dict[str, float]

STAGES = (
    "data wait",
    "augmentation",
    "query",
    "key",
    "head",
    "backward",
    "communication",  # but for the gradients': that goes on behind the backward pass, and is part of it here
    "optimiser",
    "EMA",
    "queue",
)
OTHER = "other"


class Timeline:
    """Seconds per stage. `tracing`: the stages are ranges of the profiler's trace as well."""

    def __init__(self) -> None:
        self.running = self.on_gpu = self.tracing = False
        self._stack: list[str] = []
        self._seconds: Seconds = dict.fromkeys((*STAGES, OTHER), 0.0)
        self._last: Any = None  # time or event of the last change of stage
        self._unread: list[tuple[str, Any, Any]] = []  # stage, events of its begin and end

    def start(self, device: torch.device) -> None:
        """From now on time is measured, on this device's clock."""
        self.running, self.on_gpu = True, device.type == "cuda"
        self._stack, self._unread = [], []
        self._last = self._now()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if not self.running:
            yield
            return
        self._change()
        self._stack.append(name)
        try:
            with torch.profiler.record_function(name) if self.tracing else contextlib.nullcontext():
                yield
        finally:
            self._change()
            self._stack.pop()

    def totals(self) -> Seconds:
        """Seconds per stage since the process began, the rest as "other". Waits for the device."""
        self._change()
        if self._unread:
            self._last.synchronize()
        for name, begin, end in self._unread:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._unread = []
        return dict(self._seconds)

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _change(self) -> None:
        now, name = self._now(), self._stack[-1] if self._stack else OTHER
        if self.on_gpu:
            self._unread.append((name, self._last, now))
        elif self._last is not None:
            self._seconds[name] += now - self._last
        self._last = now


timeline = Timeline()
stage = timeline.stage


def waited_for(items: Iterable[T]) -> Iterator[T]:
    """The same items; the time until each comes is "data wait"."""
    iterator = iter(items)
    while True:
        with stage("data wait"):
            item = next(iterator, None)
        if item is None:
            return
        yield item


def shares(before: Seconds, after: Seconds) -> dict[str, float]:
    """Each stage's share of the time between two readings of `totals`, those that took any."""
    seconds = {name: after[name] - before[name] for name in after}
    whole = sum(seconds.values())
    return {name: value / whole for name, value in seconds.items() if value > 0}


def as_line(of: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in of.items())
