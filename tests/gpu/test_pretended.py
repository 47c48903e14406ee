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
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def running(_compiler: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All checks, started at once: the process of each takes seconds to import torch."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.gpu.pretended.shim", "-q", "--no-header", "--tb=short"]
    subprocess.run([sys.executable, "-c", "import tests.gpu.pretended.shim"], cwd=ROOT, check=True)  # compiles it once
    started = {
        name: subprocess.Popen(
            [*command, "-p", "no:cacheprovider", "--basetemp", str(tmp_path_factory.mktemp(Path(name).stem) / "runs"),
             f"tests/gpu/pretended/{name}"],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name in CHECKS
    }  # fmt: skip
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("checks", CHECKS)
def test_on_a_pretended_gpu(checks: str, running: dict[str, subprocess.Popen[str]]) -> None:
    said, _ = running[checks].communicate(timeout=220)
    assert running[checks].returncode == 0, said[-8000:]
