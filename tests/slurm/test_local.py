"""--cluster local: the same path on one machine without Slurm."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.slurm.cluster import command_line, processes
from tests.slurm.submitted import ROOT, RUN, Trained, trained, wait


def test_usr2_starts_it_again(undisturbed: Trained, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "run" / "log.jsonl"
    command = [sys.executable, "-m", "launch.submitit_job", "--cluster=local", "--tasks-per-node=2", "--time=10"]
    words = ["--", *RUN, f"--output-dir={out}"]
    launcher = subprocess.Popen([*command, f"--index={tmp_path}/jobs", *words], cwd=ROOT, start_new_session=True)
    try:
        wait(lambda: log.exists() and '"global_step": 3' in log.read_text(), 150, lambda: "no third step")
        for pid, _ in list(processes()):
            words = command_line(pid)
            if "submitit.core._submit" in words and str(out) in words:
                os.kill(pid, signal.SIGUSR2)
        assert launcher.wait(150) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):  # the ranks with it, if they are still there
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    (journal,) = (out / "jobs").glob("*/*_events.jsonl")
    events = [json.loads(line)["event"] for line in journal.read_text().splitlines()]
    assert events == ["start", "requeue", "start", "end"]
    assert trained(out).differences(undisturbed) == []
