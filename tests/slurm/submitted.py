"""A job of a test's, what can be done to it, and what it computed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.slurm.cluster import Cluster, alive, command_line, processes

ROOT = Path(__file__).resolve().parent.parent.parent
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
# Two epochs of eleven steps. Small, but nothing is left out: queue, shuffled BatchNorm, momentum, checkpoints.
RUN = shlex.split(
    "--dataset digits -a smallcnn --moco-dim 16 --moco-k 256 --batch-size 128 --lr 0.06 --seed 0 --epochs 2"
    " --eval-freq 0 --print-freq 1 --workers 1 --no-tensorboard"
)


@dataclass
class Submitted:
    """A job of the test's, and what can be done to it."""

    cluster: Cluster
    id: str
    out: Path  # --output-dir
    log: Path  # output of rank 0
    pids: dict[int, int] = field(default_factory=dict)  # of the ranks of the last start that was looked at

    def state(self) -> str:
        return self.cluster.state(self.id)

    def end(self, seconds: float = 150) -> str:
        """The state that it ends in."""
        return wait(lambda: (state := self.state()) in OVER and state, seconds, self.trouble)

    def wait_for_step(self, step: int = 3) -> None:
        """Until the log tells that `step` steps were trained."""

        def there() -> bool:
            assert self.state() not in OVER, self.trouble()
            return any(record["global_step"] >= step for record in self.records())

        wait(there, 150, self.trouble)

    def records(self) -> list[dict]:
        path = self.out / "log.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [record for record in map(json.loads, lines) if record["kind"] == "train"]

    def ranks(self) -> dict[int, int]:
        """{rank: process id}, now."""
        found = {}
        for pid, its in processes():
            ours = its.get("SLURM_CONF") == str(self.cluster.configuration) and its.get("SLURM_JOB_ID") == self.id
            words = command_line(pid)
            python = "submitit.core._submit" in words and not words.startswith(("srun", "slurmstepd", "/bin/bash"))
            if ours and python:
                found[int(its["SLURM_PROCID"])] = pid
        return found

    def hold(self, step: int = 3) -> None:
        """Stands still in the middle of training until `let_go`, so that what happens next happens there."""
        self.wait_for_step(step)
        self.pids = self.ranks()
        self.send(signal.SIGSTOP)

    def send(self, number: signal.Signals) -> None:
        for pid in self.pids.values():
            os.kill(pid, number)

    def let_go(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # Slurm itself wakes a job that it wants to end
            self.send(signal.SIGCONT)

    def wait_for_signal(self, number: signal.Signals, seconds: float = 100) -> None:
        """Until every rank, standing still, has the signal waiting for it."""
        wait(lambda: all(pending(pid, number) for pid in self.pids.values()), seconds, self.trouble)

    def events(self, kind: str) -> list[dict]:
        paths = list((self.out / "jobs").glob(f"*/{self.id}_events.jsonl"))
        lines = paths[0].read_text().splitlines() if paths else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def trouble(self) -> str:
        log = self.log.read_text()[-3000:] if self.log.exists() else "(nothing yet)"
        return f"job {self.id} is {self.state()}; events {self.events('start')}; its log ends with\n{log}"


Submit = Callable[..., list[Submitted]]


def wait(true: Callable[[], object], seconds: float, trouble: Callable[[], str]) -> object:
    """Looks fifty times a second; returns what is true at last."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, trouble()
        time.sleep(0.02)
    return found


def pending(pid: int, number: signal.Signals) -> bool:
    assert alive(pid)
    masks = re.findall(r"^(?:SigPnd|ShdPnd):\s+(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


# -- what a run computed ----------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """The end of a run: weights, momentum and queue, and every number it logged."""

    state: dict
    losses: list[float]

    def differences(self, other: Trained) -> list[str]:
        unequal = [name for name, value in self.state.items() if not torch.equal(value, other.state[name])]
        return unequal + (["losses in the log"] if self.losses != other.losses else [])


def trained(folder: Path) -> Trained:
    last = torch.load(folder / "checkpoint_0001.pth.tar", weights_only=True)
    momentum = {f"momentum {i}": entry["momentum_buffer"] for i, entry in last["optimizer"]["state"].items()}
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return Trained(
        {**last["state_dict"], **{name: value for name, value in momentum.items() if value is not None}},
        [record["loss"] for record in records if record["kind"] == "train"],
    )


def torchrun(folder: Path, ranks: int) -> Trained:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "main_moco.py", *RUN]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [*command, f"--output-dir={folder}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return trained(folder)
