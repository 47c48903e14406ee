"""launch/slurm.sbatch: torchrun's agents on two nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.slurm.cluster import Cluster, command_line, processes
from tests.slurm.submitted import ROOT, RUN, Submitted, Trained, trained, wait


def workers(job: Submitted) -> dict[int, int]:
    """{rank: process id}. The agents have the same words in their command line, but are no ranks."""
    ours = ((pid, its) for pid, its in processes() if its.get("SLURM_JOB_ID") == job.id and "RANK" in its)
    return {int(its["RANK"]): pid for pid, its in ours if "main_moco.py" in command_line(pid)}


def starts(job: Submitted) -> int:
    path = job.out / "log.jsonl"
    records = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return sum(record["kind"] == "start" for record in records)


def test_a_killed_worker_and_the_time_limit(cluster: Cluster, undisturbed: Trained, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    command = ["sbatch", "--parsable", "--nodes=2", "--time=10", f"--output={log}", "launch/slurm.sbatch"]
    environment = {**os.environ, "PYTHON": sys.executable, "NPROC": "1"}
    told = subprocess.run(
        [*command, *RUN, f"--output-dir={out}"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    job = Submitted(cluster, told.stdout.strip(), out, log)

    # torchrun starts all ranks again, in the same job
    job.wait_for_step(3)
    os.kill(workers(job)[1], signal.SIGKILL)
    wait(lambda: starts(job) == 2, 100, job.trouble)
    assert job.state() == "RUNNING", job.trouble()

    # what Slurm does two minutes before the limit
    job.wait_for_step(3)
    cluster.tell("scancel", "--signal=USR1", "--batch", job.id)
    assert job.end() == "COMPLETED", job.trouble()
    assert "is requeued (time limit)" in log.read_text()
    assert starts(job) == 3
    assert trained(out).differences(undisturbed) == []
