"""Jobs on a real Slurm, which the first test starts and the end of the session stops. For `make test-slurm` alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, NotInstalled
from tests.slurm.submitted import ROOT, RUN, Submit, Submitted, Trained, torchrun

if "MOCO_TEST_SLURM" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    # two nodes that claim to have four processors each, and two graphics cards
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="moco-slurm-")), nodes=2, cpus=4, gpus=2, with_parent=True)
    # so that `timeout` or a cancelled CI job leaves nothing behind either
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("SIGTERM", returncode=143))
    try:
        cluster.start()
    except NotInstalled as trouble:
        cluster.stop()
        if os.environ["MOCO_TEST_SLURM"] == "required":
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


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Submit:
    """submit([options of the launcher], [of main_moco], [of main_lincls]) -> its jobs."""

    def call(launcher: list[str], pretrain: list[str] | None = None, probe: list[str] | None = None) -> list[Submitted]:
        out = tmp_path / "run"
        command = [
            sys.executable, "-m", "launch.submitit_job", f"--index={tmp_path}/jobs.jsonl", "--time=10", *launcher,
            "--", *RUN, f"--output-dir={out}", *(pretrain or []), *(["--", *probe] if probe else []),
        ]  # fmt: skip
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert told.returncode == 0, told.stderr
        ids = re.findall(r"^job (\S+)", told.stdout, re.M)
        logs = re.findall(r"^  log +(\S+)", told.stdout, re.M)
        return [Submitted(cluster, job, out, ROOT / log) for job, log in zip(ids, logs, strict=True)]

    return call


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two ranks under torchrun, without Slurm, to the end. Also fills the caches that snapshots take along."""
    return torchrun(tmp_path_factory.mktemp("undisturbed"), 2)
