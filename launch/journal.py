"""Writes a job's journal: starts, requeues and end, as JSON lines.

Rank 0 writes it.

    {"event": "start" | "requeue" | "end", "time": "...", "host": "...", "restart": 0, "saved": [...], ...}

`saved` identifies the newest checkpoint at that moment. So a restart with progress differs from one without. A restart
may come from the time limit, a higher partition, a dead node or `scontrol requeue`. Only some of them let the job write
first.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any


class Journal:
    def __init__(self, path: Path, folders: Iterable[Path]):
        """Takes the folders in which the job's runs write their checkpoints."""
        self.path = path
        self.folders = list(folders)

    def saved(self) -> list[Any]:
        """Returns the newest checkpoint's [time of writing in ns, path], or []."""
        found = [path for folder in self.folders for path in folder.glob("checkpoint*.pth.tar")]
        return max(([path.stat().st_mtime_ns, str(path)] for path in found), default=[])

    def write(self, event: str, **more: Any) -> None:
        line = {
            "event": event,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "restart": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            "saved": self.saved(),
            **more,
        }
        append(self.path, line)

    def starts_without_progress(self) -> int:
        """Counts the last starts in a row that found the present checkpoint."""
        now = self.saved()
        starts = [event for event in read(self.path) if event["event"] == "start"]
        return len(list(takewhile(lambda start: start["saved"] == now, reversed(starts))))


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the events; drops half a line that a dead node left."""
    if not path.exists():
        return []
    return list(whole_lines(path))


def append(path: Path, entry: dict[str, Any]) -> None:
    """Appends one line in a single write, so processes do not mix.

    After half a line it begins a new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        cut = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * cut + json.dumps(entry).encode() + b"\n")


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the entries of such a file, without an incomplete line."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
