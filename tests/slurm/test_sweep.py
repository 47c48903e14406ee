"""launch/sweep.py as a job array: bounded, a row for each element, safe to run again."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import yaml

from tests.slurm.cluster import Cluster
from tests.slurm.submitted import ROOT, wait

SPEC = {
    "name": "tiny",
    "set": dict(
        dataset="digits", arch="smallcnn", batch_size=128, epochs=1, moco_dim=16, moco_k=256, eval_freq=1, knn_k=20,
        workers=1, tensorboard=False, seed=0,
    ),
    "probe": {"epochs": 2, "lr": 1},
    "parts": [{"grid": {"moco_t": [0.1, 0.2, 0.3]}}],
}  # fmt: skip


def sweep(*words: str) -> str:
    command = [sys.executable, "-m", "launch.sweep", *words]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "results.csv", newline="") as file:
        return {row["moco_t"]: row for row in csv.DictReader(file)}


def test_an_array_with_one_failing_element_and_again(cluster: Cluster, tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    spec.write_text(yaml.safe_dump(SPEC))
    words = [str(spec), f"--output-dir={out}"]
    launch = [*words, "--parallel=2", "--time=10", f"--index={tmp_path}/jobs.jsonl"]
    ids = [line.split()[0] for line in sweep(*launch, "--dry-run").splitlines()[:3]]
    assert not out.exists()

    # Where the third wants to write its checkpoints stands a file
    broken = out / "elements" / ids[2] / "pretrain"
    broken.parent.mkdir(parents=True)
    broken.touch()
    assert "3 to do" in sweep(*launch)

    def over() -> bool:
        ended = cluster.tell("squeue", "-h", "-r", "-tall", "-ntiny", "-o%T").split()
        return len(ended) >= 3 and not {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"} & set(ended)

    shown = wait(lambda: over() and sweep("status", *words), 200, lambda: sweep("status", *words))
    assert "2 done, 1 failed" in str(shown)
    states = cluster.tell("squeue", "-h", "-r", "-tall", "-ntiny", "-o%T").split()
    assert sorted(states) == ["COMPLETED", "COMPLETED", "FAILED"]
    assert set(rows(out)) == {"0.1", "0.2"}
    assert all(float(row["knn_top1"]) > 50 and float(row["lincls_top1"]) > 10 for row in rows(out).values())
    written = {id: (out / "elements" / id / "row.json").stat().st_mtime_ns for id in ids[:2]}

    broken.unlink()
    assert "1 to do" in sweep(*launch)
    wait(lambda: "3 done" in sweep("status", *words), 150, lambda: sweep("status", *words))
    assert set(rows(out)) == {"0.1", "0.2", "0.3"}
    assert written == {id: (out / "elements" / id / "row.json").stat().st_mtime_ns for id in ids[:2]}
    assert "0 to do" in sweep(*launch)
