"""The commands of docs/tutorial.md, run in order in a folder of their own; links; the API reference."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command: list[str], cwd: Path) -> str:
    # `python` means this one, and the clone's files are found as from the clone
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)  # several programs, each of which has to start
def test_every_command_of_the_tutorial(tmp_path: Path) -> None:
    for name in ("main_moco.py", "hubconf.py", "examples", "moco"):
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text())
    assert len(blocks) == 6
    programs = {"sh": ["bash", "-euc"], "python": [sys.executable, "-c"]}
    said = [run([*programs[kind], text], tmp_path) for kind, text in blocks]
    assert "the features are nearly one point" not in said[1]
    assert (tmp_path / "runs/photos/checkpoint_0019-safetensors/metadata.json").exists()
    assert (tmp_path / "runs/photos/neighbours.png").exists()
    names = re.findall(r"photos/train/(\w+)-\d+\.jpg", said[4])
    assert len(names) == 6 and names.count("flower") > 3  # of 64 photographs, 32 of each


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for script in re.findall(r"python ((?:examples/|benchmarks/|main_)\w+\.py)", text):
        assert (ROOT / script).exists(), script


@pytest.mark.timeout(600)
def test_api_reference(tmp_path: Path) -> None:
    """`make docs`: a page for every public module, with the docstrings in it."""
    pytest.importorskip("pdoc")
    recipe = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "-m pdoc" in line)
    words = recipe.split("-m pdoc", 1)[1].replace("build/docs", str(tmp_path)).split()
    run([sys.executable, "-W", "ignore", "-m", "pdoc", *words], ROOT)
    for path in ROOT.glob("moco/**/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        page = tmp_path.joinpath(*(parts[:-1] if parts[-1] == "__init__" else parts)).with_suffix(".html")
        assert page.exists() != parts[-1].startswith("_t"), page
    assert "Wang &amp; Isola" in (tmp_path / "moco" / "losses.html").read_text()
