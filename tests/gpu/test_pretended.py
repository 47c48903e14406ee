"""The programs on a pretended GPU: a CPU build of torch that believes in eight CUDA devices (tests/gpu/pretended).

torch must be imported after a library is loaded, so the checks run in processes of their own, by pytest again:

    python -m pytest -p tests.gpu.pretended.shim tests/gpu/pretended/check_steps.py -k "hcl and fp16"

Without a C++ compiler they are skipped, or fail where MOCO_TEST_PRETENDED_GPU is "required", as in .ci/run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CHECKS = sorted(path.name for path in (ROOT / "tests/gpu/pretended").glob("check_*.py"))


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    wanted = os.environ.get("CXX") or "c++"
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA: nothing to pretend")
    if shutil.which(wanted):
        return
    reason = f"no C++ compiler ({wanted}): nothing is known about this code on a GPU; install g++"
    if os.environ.get("MOCO_TEST_PRETENDED_GPU") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.parametrize("checks", CHECKS)
def test_on_a_pretended_gpu(checks: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.gpu.pretended.shim", "-q", "--no-header", "--tb=short"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"tests/gpu/pretended/{checks}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=220,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
