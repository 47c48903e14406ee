"""The programs on a pretended GPU: a CPU build of torch that believes in eight CUDA devices (tests/gpu/pretended).

torch must be imported after a library is loaded, so the checks run in processes of their own, by pytest again:

    python -m pytest -p tests.gpu.pretended.shim tests/gpu/pretended/check_steps.py -k "hcl and fp16"

Without a C++ compiler they are skipped, or fail where MOCO_TEST_PRETENDED_GPU is "required", as in .ci/run.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.pretended.library import compiler, library

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 900  # seconds, on a busy machine


@pytest.mark.slow
@pytest.mark.timeout(LONGEST + 60)
def test_on_a_pretended_gpu(tmp_path: Path) -> None:
    """All checks, in one process: to begin takes as long as twenty of them."""
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA: nothing to pretend")
    if compiler() is None:
        reason = "no C++ compiler (CXX or c++): nothing is known about this code on a GPU; install g++"
        if os.environ.get("MOCO_TEST_PRETENDED_GPU") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    library()  # compiles it once
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.gpu.pretended.shim", "-q", "--no-header", "--tb=short",
         "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "checks"),
         *sorted(map(str, (ROOT / "tests/gpu/pretended").glob("check_*.py")))],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LONGEST,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.mark.parametrize("script", ["launches.py", "compile_time.py"])
def test_a_script_loads_the_library_before_torch(script: str) -> None:
    """Else it would find a torch without GPUs."""
    lines = ast.parse((ROOT / "benchmarks" / script).read_text()).body
    imports = [node for node in lines if isinstance(node, ast.Import | ast.ImportFrom)]
    first = next(node for node in imports if not (isinstance(node, ast.ImportFrom) and node.module == "__future__"))
    assert ast.unparse(first) == "import tests.gpu.pretended.shim"
