"""`--profile`: a few steps under torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from moco.stages import shares, timeline

WARM_UP, STEPS = 3, 8  # the first steps choose kernels, and compile where that was asked for


class Profile:
    """Writes profile/trace.json (for chrome://tracing or Perfetto) and profile/table.txt in `folder`, once.

    wanted: without it this does nothing. `step` is called after each training step, `say` with where the files are.
    """

    def __init__(self, folder: Path, device: torch.device, wanted: bool, say: Callable[[str], Any]) -> None:
        self.folder, self.on_gpu, self.say = folder / "profile", device.type == "cuda", say
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
            self.say(f"--profile: too few steps, there is no trace of a run of less than {WARM_UP + 1}")

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
