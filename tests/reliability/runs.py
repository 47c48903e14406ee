"""Runs of main_moco.py as the tests of this folder see them: start, end, and what was left behind."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moco.run.checkpoint import checkpoints, load
from moco.run.log import read_log

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
Fault = dict[str, Any]


def fault(at: str, call: int, do: str, after: bool = False) -> Fault:
    """See launcher.py."""
    return {"at": at, "call": call, "do": do, "after": after}


def on_all(world: int, *faults: Fault) -> dict[int, list[Fault]]:
    """The same on each of `world` ranks."""
    return {rank: list(faults) for rank in range(world)}


def free_port() -> int:
    """Below the ports that the kernel gives out by itself, or it might give this one away before rank 0 takes it."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment() -> dict[str, str]:
    """One thread each: several processes share two cores, and the order of summation must be the same everywhere."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Launcher:
    """The process of launcher.py."""

    def __init__(self) -> None:
        command = [sys.executable, str(HERE / "launcher.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the launcher died"
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)

    def start(
        self, argv: Iterable[str], folder: Path, *, world: int = 1, faults: dict[int, list[Fault]] | None = None
    ) -> Started:
        """Starts main_moco.py with `argv` as `world` ranks; `faults` by rank. Output goes to `folder`.out, per rank."""
        port, ranks = free_port(), []
        there = next(path for path in (folder, *folder.parents) if path.parent.is_dir())
        outputs = [Path(f"{there}.rank{rank}.out") for rank in range(world)]
        for rank in range(world):
            env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            env |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            ranks.append(
                {
                    "argv": [*argv, "--output-dir", str(folder)],
                    "env": env if world > 1 else {},
                    "faults": (faults or {}).get(rank, []),
                    "output": str(outputs[rank]),
                }
            )
        starts = [output.stat().st_size if output.exists() else 0 for output in outputs]
        return Started(self, self.ask({"start": ranks})["pids"], folder, outputs, starts)

    def run(
        self,
        argv: Iterable[str],
        folder: Path,
        *,
        world: int = 1,
        faults: dict[int, list[Fault]] | None = None,
        grace: float = 60.0,
    ) -> Ended:
        """Starts, waits, and once a rank has failed ends the others after `grace` seconds, as torchrun does."""
        return self.start(argv, folder, world=world, faults=faults).end(grace=grace)


@dataclass
class Started:
    launcher: Launcher
    pids: list[int]
    folder: Path
    outputs: list[Path]
    output_starts: list[int]

    def signal(self, number: signal.Signals, ranks: Iterable[int] | None = None) -> None:
        for rank in range(len(self.pids)) if ranks is None else ranks:
            os.kill(self.pids[rank], number)

    def poll(self, seconds: float = 0.0, ranks: Iterable[int] | None = None) -> list[int | None]:
        pids = [self.pids[rank] for rank in (range(len(self.pids)) if ranks is None else ranks)]
        return self.launcher.ask({"wait": pids, "seconds": seconds})["codes"]

    def end(self, seconds: float = 120.0, grace: float = 60.0) -> Ended:
        """Waits for all; once one has failed the others get `grace` seconds to notice, then SIGKILL."""
        codes = self.poll(0.0)
        deadline = time.monotonic() + seconds
        while None in codes and not any(codes) and time.monotonic() < deadline:
            self.poll(0.2, [codes.index(None)])
            codes = self.poll(0.0)
        if None in codes and any(codes):
            codes = self.poll(grace)
        killed = [rank for rank, code in enumerate(codes) if code is None]
        if killed:
            self.signal(signal.SIGKILL, killed)
            codes = self.poll(20.0)
        texts = []
        for output, start in zip(self.outputs, self.output_starts, strict=True):
            texts.append(output.read_bytes()[start:].decode(errors="replace"))
        return Ended([code if code is not None else -9 for code in codes], killed, texts, self.folder)


@dataclass
class Ended:
    codes: list[int]
    ended_by_us: list[int]  # ranks that had to be killed because they did not notice
    outputs: list[str]
    folder: Path
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return "\n".join(self.outputs)


def same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.numel() == 0 or bool(
            a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and repr(a) == repr(b)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two checkpoints differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        missing = [f"{where}.{key} is in one only" for key in a.keys() ^ b.keys()]
        return missing + [line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{where}[{i}]")]
    return [] if same_bits(a, b) else [f"{where}: {a!r} and {b!r}"[:200]]


OWN = {"output_dir", "resume", "config"}  # options that may differ between two runs that do the same


def final_checkpoint(folder: Path) -> dict[str, Any]:
    state = load(checkpoints(folder)[-1])
    run = state["moco_run"]
    del run["git"]  # of whoever commits meanwhile
    run["options"] = {name: value for name, value in run["options"].items() if name not in OWN}
    return state


def logged(folder: Path) -> list[dict[str, Any]]:
    """All records that are a function of data, options and seed, without their timings."""
    kinds = ("train", "epoch", "eval", "warning")
    records = [record for record in read_log(folder / "log.jsonl") if record["kind"] in kinds]
    return [{name: value for name, value in record.items() if name != "timing"} for record in records]


def steps_done(folder: Path) -> int:
    """The last step in the log, 0 if there is none."""
    path = folder / "log.jsonl"
    return max((record["global_step"] for record in read_log(path)), default=0) if path.exists() else 0


def assert_same_run(folder: Path, reference: Path) -> None:
    """Every tensor and value of the last checkpoint, and every logged number, to the last bit."""
    assert checkpoints(folder)[-1].name == checkpoints(reference)[-1].name
    different = differences(final_checkpoint(folder), final_checkpoint(reference))
    assert not different, different[:10]
    a, b = logged(folder), logged(reference)
    assert len(a) == len(b), (len(a), len(b))
    for here, there in zip(a, b, strict=True):
        assert repr(here) == repr(there)
