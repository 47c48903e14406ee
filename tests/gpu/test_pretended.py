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
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# in two processes, as each takes ten seconds to begin
CHECKS = ["steps faults counts", "programs ranks"]
LONGEST = 900  # seconds on a busy machine; 90 for all of them on two idle cores


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


Checked = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def running(
    _compiler: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Checked]]]:
    """The checks that were asked for, side by side."""
    subprocess.run([sys.executable, "-c", "import tests.gpu.pretended.shim"], cwd=ROOT, check=True)  # compiles it once
    folder = tmp_path_factory.mktemp("pretended")

    def run(names: str) -> Checked:
        files = [f"tests/gpu/pretended/check_{name}.py" for name in names.split()]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "tests.gpu.pretended.shim", "-q", "--no-header", "--tb=short",
             "-p", "no:cacheprovider", "--basetemp", str(folder / names.replace(" ", "-")), *files],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LONGEST,
        )  # fmt: skip

    items = [item for item in request.session.items if item.path == Path(__file__) and hasattr(item, "callspec")]
    wanted = [item.callspec.params["checks"] for item in items]
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {names: pool.submit(run, names) for names in wanted}


@pytest.mark.slow
@pytest.mark.timeout(LONGEST + 60)
@pytest.mark.parametrize("checks", CHECKS)
def test_on_a_pretended_gpu(checks: str, running: dict[str, Future[Checked]]) -> None:
    done = running[checks].result()
    assert done.returncode == 0, done.stdout[-8000:]


def test_no_check_is_left_out() -> None:
    files = {path.stem.removeprefix("check_") for path in (ROOT / "tests/gpu/pretended").glob("check_*.py")}
    assert files == set(" ".join(CHECKS).split())
