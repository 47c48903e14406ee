"""Measures a step's time by stage on the device's clock, without waiting.

    with stage("key"):
        with stage("augmentation"): ...      # counted there, not also in "key"

On a CPU the clock is the processor's. On a GPU an event goes into the stream at each change of stage.
`finished` reads the events that have passed. `totals` reads all of them. It is called at the end of an epoch, where
the host waits for the device anyway. Inside torch.profiler the stages are ranges of the trace.
There is one timeline per process, for its one training, in the thread that trains.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
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
    "communication",  # not of gradients, which overlaps with the backward pass and is counted there
    "optimiser",
    "EMA",
    "queue",
)
OTHER = "other"


class Timeline:
    """Measures seconds per stage.

    tracing: True if the stages are also ranges of the profiler's trace.
    """

    def __init__(self) -> None:
        self.running = self.on_gpu = self.tracing = False
        self._stack: list[str] = []
        self._seconds: Seconds = dict.fromkeys((*STAGES, OTHER), 0.0)
        self._last: Any = None  # time or event of the last change of stage
        self._unread: list[tuple[str, Any, Any]] = []  # stage, events of its begin and end

    def start(self, device: torch.device) -> None:
        """Begins to measure, with this device's clock."""
        self.running = True
        self.on_gpu = device.type == "cuda"
        self._stack = []
        self._unread = []
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
        """Returns the seconds per stage since the process began.

        Time outside of the stages is "other". It waits for the device.
        """
        self._change()
        if self._unread:
            self._last.synchronize()
        for name, begin, end in self._unread:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._unread = []
        return dict(self._seconds)

    def finished(self) -> Seconds:
        """Returns the seconds per stage that the device has finished by now.

        They count since the process began. It does not wait for the device.
        """
        self._change()
        passed = 0
        for name, begin, end in self._unread:
            if not end.query():
                break
            self._seconds[name] += begin.elapsed_time(end) / 1e3
            passed += 1
        del self._unread[:passed]
        return dict(self._seconds)

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _change(self) -> None:
        now = self._now()
        name = self._stack[-1] if self._stack else OTHER
        if self.on_gpu:
            self._unread.append((name, self._last, now))
        elif self._last is not None:
            self._seconds[name] += now - self._last
        self._last = now


timeline = Timeline()
stage = timeline.stage


def waited_for(items: Iterable[T]) -> Iterator[T]:
    """Yields the items; counts the wait for each as "data wait"."""
    iterator = iter(items)
    while True:
        with stage("data wait"):
            item = next(iterator, None)
        if item is None:
            return
        yield item


def shares(before: Seconds, after: Seconds) -> dict[str, float]:
    """Returns each stage's share of the time between two readings.

    The readings are from `totals`. Stages that took no time are left out.
    """
    seconds = {name: after[name] - before[name] for name in after}
    whole = sum(seconds.values())
    return {name: value / whole for name, value in seconds.items() if value > 0}


def as_line(of: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in of.items())


WARM_UP = 3  # the first steps choose kernels, and compile if wanted
STEPS = 8


class Profile:
    """Writes profile/trace.json and profile/table.txt in `folder`, once.

    chrome://tracing and Perfetto show the trace. Call `step` after each training step.
    wanted: if False, nothing is profiled.
    say: prints the place of the files.
    """

    def __init__(self, folder: Path, device: torch.device, wanted: bool, say: Callable[[str], Any]) -> None:
        self.folder = folder / "profile"
        self.on_gpu = device.type == "cuda"
        self.say = say
        self._done = 0
        self._profiler: Any = None
        if wanted:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.on_gpu:
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(
                activities=activities,
                schedule=torch.profiler.schedule(wait=0, warmup=WARM_UP, active=STEPS, repeat=1),
                on_trace_ready=self._write,
            )

    def __enter__(self) -> Profile:
        if self._profiler:
            timeline.tracing = True
            self._profiler.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._profiler:
            self._end()

    def step(self) -> None:
        if self._profiler is None:
            return
        self._done += 1
        if self._done == WARM_UP:
            self._before = timeline.totals()
        self._profiler.step()
        if self._done == WARM_UP + STEPS:
            self._end()

    def _end(self) -> None:
        timeline.tracing = False
        self._profiler.stop()
        self._profiler = None
        if self._done <= WARM_UP:
            self.say(f"--profile wrote nothing: it needs at least {WARM_UP + 1} training steps")

    def _write(self, profiler: Any) -> None:
        if self._done <= WARM_UP:
            return
        of = shares(self._before, timeline.totals())
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        lines = [f"{name:15}{share:7.1%}" for name, share in of.items()]
        operations = profiler.key_averages().table(
            sort_by="self_device_time_total" if self.on_gpu else "self_cpu_time_total", row_limit=30
        )
        head = f"share of {self._done - WARM_UP} steps"
        (self.folder / "table.txt").write_text("\n".join([head, *lines, "", operations, ""]))
        self.say(f"profile of {self._done - WARM_UP} steps in {self.folder}: trace.json, table.txt")


def cpu_seconds() -> float:
    """Returns the processor time of this process and its ended children."""
    import resource  # not on Windows

    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
