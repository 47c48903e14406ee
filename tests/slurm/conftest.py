"""Jobs on a real Slurm, which the first test starts and the end of the session stops. For `make test-slurm` alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from cluster import Cluster, NotInstalled, alive, command_line, processes

ROOT = Path(__file__).resolve().parent.parent.parent
if "MOCO_TEST_SLURM" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
# Two epochs of eleven steps. Small, but nothing is left out: queue, shuffled BatchNorm, momentum, checkpoints.
RUN = [
    "--dataset",
    "digits",
    "-a",
    "smallcnn",
    "--moco-dim",
    "16",
    "--moco-k",
    "256",
    "-b",
    "128",
    "--lr",
    "0.06",
    "--seed",
    "0",
    "--epochs",
    "2",
    "--eval-freq",
    "0",
    "-p",
    "1",
    "-j",
    "1",
    "--no-tensorboard",
]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # two nodes that claim to have four processors each, and two graphics cards
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="moco-slurm-")), nodes=2, cpus=4, gpus=2)
    try:
        cluster.start()
    except NotInstalled as trouble:
        cluster.stop()
        if os.environ.get("CI") or os.environ["MOCO_TEST_SLURM"] == "required":
            raise
        pytest.skip(f"\n\n*** NO SLURM, NOTHING IN tests/slurm WAS TESTED: {trouble} ***\n")
    before = {name: os.environ.get(name) for name in cluster.environment()}
    os.environ.update(cluster.environment(), OMP_NUM_THREADS="1")
    try:
        yield cluster
    finally:
        cluster.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    assert not cluster.folder.exists()


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


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Submit:
    """submit([options of the launcher], [of main_moco], [of main_lincls]) -> its jobs."""

    def call(launcher: list[str], pretrain: list[str] | None = None, probe: list[str] | None = None) -> list[Submitted]:
        out = tmp_path / "run"
        command = [
            sys.executable, "launch/submitit_job.py", f"--index={tmp_path}/jobs.jsonl", "--time=10", *launcher,
            "--", *RUN, f"--output-dir={out}", *(pretrain or []), *(["--", *probe] if probe else []),
        ]  # fmt: skip
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert told.returncode == 0, told.stderr
        ids = re.findall(r"^job (\S+)", told.stdout, re.M)
        logs = re.findall(r"^  log +(\S+)", told.stdout, re.M)
        return [Submitted(cluster, job, out, ROOT / log) for job, log in zip(ids, logs, strict=True)]

    return call


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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two ranks under torchrun, without Slurm, to the end. Also fills the caches that snapshots take along."""
    return torchrun(tmp_path_factory.mktemp("undisturbed"), 2)


def torchrun(folder: Path, ranks: int) -> Trained:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "main_moco.py", *RUN]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [*command, f"--output-dir={folder}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return trained(folder)
