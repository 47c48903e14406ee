"""A rank that fails by itself says so and ends, whatever the process group does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from moco.errors import EXIT_INPUT

ROOT = Path(__file__).resolve().parents[2]


def test_a_failing_rank_prints_and_ends_without_destroying_the_group() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.failing_rank"],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        _, said = ranks[1].communicate(timeout=100)
        ranks[0].communicate(timeout=100)
    finally:
        for process in ranks:
            process.kill()
    assert said.strip().endswith("error: image 7 cannot be read")
    assert [process.returncode for process in ranks] == [0, EXIT_INPUT]
