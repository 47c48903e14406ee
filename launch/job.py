"""Runs one task of a job: calls the mains and requeues.

submitit pickles a `Job` and calls it in every task that srun starts. The mains notice signals by themselves: they save
at a step that all ranks agree on and return EXIT_PREEMPTED. Only then rank 0 calls submitit's own handler, as if the
signal had come just now: it asks `checkpoint` what to run next and requeues the job. The other ranks leave without a
result, because submitit would take a result for the end of the job.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import submitit

from launch.journal import Journal
from moco.errors import EXIT_INPUT, EXIT_NUMERICS, EXIT_PREEMPTED, EXIT_RANK
from moco.run.preemption import SIGNALS
from moco.world import World

# How long a rank that lost another one waits for Slurm. Slurm ends it at once if the other was killed, and after
# SlurmdTimeout (300 s, by default) if the other's node died. After a dead node Slurm also requeues the job, unless a
# rank has failed by then.
VERDICT_S = 900.0
MEANING = {EXIT_INPUT: "bad input", EXIT_NUMERICS: "numbers gone wrong", EXIT_RANK: "a rank was lost"}


class JobFailed(RuntimeError):
    """Says that a main ended with a code other than 0.

    Slurm shows the job as FAILED and does not start it again.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message, code)  # both, because pickle restores it from its arguments
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message


class Step(NamedTuple):
    """Holds one main and its arguments."""

    main: str  # the module: main_moco, main_lincls, ...
    options: str  # a YAML file for --config: the resolved options, with `resume: auto`
    output_dir: str
    begin_from: str | None = None  # the checkpoint of --resume, used if output_dir has none

    def arguments(self) -> list[str]:
        fresh = self.begin_from and not list(Path(self.output_dir).glob("checkpoint*.pth.tar"))
        return ["--config", self.options, *(["--resume", str(self.begin_from)] if fresh else [])]


class Job:
    """Runs the steps one after the other in the same ranks.

    folder: the job's folder. Each step writes to its own output_dir.
    """

    def __init__(self, steps: list[Step], folder: Path, stalled_restarts: int = 5):
        self.steps = steps
        self.folder = folder
        self.stalled_restarts = stalled_restarts

    def __call__(self) -> None:
        task = this_task()
        self.begin(task)
        for number, step in enumerate(self.steps):
            become_rank(task, number)
            code = importlib.import_module(step.main).main(step.arguments())
            if code == EXIT_PREEMPTED:
                self.go_on_later(task)
            if code == EXIT_RANK and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
                print(f"rank {World.launched().rank}: waiting for Slurm's word on the rank that was lost", flush=True)
                time.sleep(VERDICT_S)
            if code:
                self.end(task, f"{MEANING.get(code, 'failed')}, exit code {code}")
                raise JobFailed(
                    f"{step.main}.py ended with exit code {code} ({MEANING.get(code, 'see its output')})", code
                )
        self.end(task, "done")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission | None:
        """Tells submitit what to run at the next start; None ends it."""
        journal = self.journal(this_task())
        if journal.starts_without_progress() > self.stalled_restarts:
            print(f"{self.stalled_restarts} restarts in a row saved nothing, so the job is not requeued", flush=True)
            journal.write("end", outcome="stalled")
            return None
        journal.write("requeue")
        return submitit.helpers.DelayedSubmission(self)

    # -- parts of a call ----------------------------------------------------------------------------------------------

    def begin(self, task: submitit.JobEnvironment | None) -> None:
        if task is None:
            return
        self.on_usr2 = signal.getsignal(task._usr_sig())
        # files of an earlier start are no result of this one, and submitit would refuse to overwrite them
        for path in (task.paths.result_pickle, task.paths.submitted_pickle):
            path.with_name(path.name + ".save_tmp").unlink(missing_ok=True)
        task.paths.result_pickle.unlink(missing_ok=True)
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        print(
            f"rank {task.global_rank} of {task.num_tasks}: process {os.getpid()} on"
            f" {os.environ.get('SLURMD_NODENAME', task.hostname)}, device {own_device(devices, task.local_rank)}, start"
            f" {os.environ.get('SLURM_RESTART_COUNT', '0')} of job {task.job_id}",
            flush=True,
        )
        if task.global_rank == 0:
            journal = self.journal(task)
            journal.write("start")
            if journal.starts_without_progress() > self.stalled_restarts + 1:
                journal.write("end", outcome="stalled")
                raise JobFailed(f"{self.stalled_restarts} restarts in a row saved nothing; look into {self.folder}")

    def end(self, task: submitit.JobEnvironment | None, outcome: str) -> None:
        if task is not None and task.global_rank == 0:
            self.journal(task).write("end", outcome=outcome)

    def journal(self, task: submitit.JobEnvironment | None) -> Journal:
        name = task.job_id if task else "debug"
        return Journal(self.folder / f"{name}_events.jsonl", [Path(step.output_dir) for step in self.steps])

    def go_on_later(self, task: submitit.JobEnvironment | None) -> None:
        """Requeues the job and ends the process, so it does not return.

        A job that is being cancelled is not requeued.
        """
        sys.stdout.flush()
        if task is None:
            raise SystemExit(EXIT_PREEMPTED)
        if task.global_rank != 0:
            os._exit(0)  # srun would kill rank 0 after another exit code, and submitit must get no result
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and not may_requeue(task.raw_job_id):
            print("saved; Slurm is ending this job, so it is not requeued from here", flush=True)
            self.journal(task).write("end", outcome="ended by Slurm")
            sys.stdout.flush()
            os._exit(EXIT_PREEMPTED)
        for number in SIGNALS:  # a second request to requeue would fail, and look like a failure of the job
            signal.signal(number, signal.SIG_IGN)
        assert callable(self.on_usr2), "submitit's handler was not there when the job began"
        self.on_usr2(task._usr_sig(), None)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "on_usr2"}


def this_task() -> submitit.JobEnvironment | None:
    """Returns submitit's view of this process.

    None outside of its jobs (--cluster debug, elements of a local sweep).
    """
    try:
        return submitit.JobEnvironment()
    except RuntimeError:
        return None


def become_rank(task: submitit.JobEnvironment | None, number: int) -> None:
    """Sets the variables that torchrun would set.

    Each job, restart and step has its own port, because the old one may stay in use for a while.
    """
    if task is None:
        return
    job = int(task.raw_job_id)
    restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    os.environ.update(
        RANK=str(task.global_rank),
        WORLD_SIZE=str(task.num_tasks),
        LOCAL_RANK=str(task.local_rank),
        LOCAL_WORLD_SIZE=str(task.num_tasks // task.num_nodes),
        MASTER_ADDR=task.hostnames[0] if task.num_nodes > 1 else "127.0.0.1",
        # below the ports that the kernel gives out; neighbouring jobs never share one
        MASTER_PORT=str(10000 + (job + 1009 * restart + 7013 * number) % 20000),
    )


def own_device(visible: str, local_rank: int) -> str:
    devices = [device for device in visible.split(",") if device]
    return devices[local_rank] if local_rank < len(devices) else "cpu"


def may_requeue(job: str) -> bool:
    """Returns True if the job may be requeued.

    It may if Slurm still lets it run, or has ended it only for its time limit. A cancelled job must stay cancelled, and
    Slurm itself requeues the others.
    """
    told = subprocess.run(["squeue", "-h", "-tall", "-o%T|%r", "-j", job], capture_output=True, text=True, timeout=60)
    state, _, reason = told.stdout.strip().partition("|")
    return told.returncode != 0 or state == "RUNNING" or reason == "TimeLimit"
