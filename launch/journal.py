"""The journal of one job: starts, requeues and end, as JSON lines.

Rank 0 writes it.

    {"event": "start" | "requeue" | "end", "time": "...", "host": "...", "restart": 0, "saved": [...], ...}

`saved` identifies the newest checkpoint at that moment. It tells a restart that got on from one that did not, whoever
ordered it: the time limit, a higher partition, a dead node or `scontrol requeue`; only some of those let the job speak
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
        """`folders`: where the job's runs write their checkpoints."""
        self.path = path
        self.folders = list(folders)

    def saved(self) -> list[Any]:
        """The newest checkpoint as [time of writing in ns, path]; [] if there is none."""
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
        """Number of the last starts in a row that found the present newest checkpoint."""
        now = self.saved()
        starts = [event for event in read(self.path) if event["event"] == "start"]
        return len(list(takewhile(lambda start: start["saved"] == now, reversed(starts))))


def read(path: Path) -> list[dict[str, Any]]:
    """The events so far; half a line, left by a node that died, is dropped."""
    if not path.exists():
        return []
    return list(whole_lines(path))


def append(path: Path, entry: dict[str, Any]) -> None:
    """One line, in one write, so that several processes at once do not mix; after half a line it begins a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        cut = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * cut + json.dumps(entry).encode() + b"\n")


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of such a file, without what a node that died left of one."""
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
