"""The commands of docs/tutorial.md and docs/evaluation.md, run in a folder of their own; links; the site's pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import main_lincls
import main_moco
from moco.evaluate import __main__ as evaluate
from moco.pretrain.options import parse_pretrain
from moco.probe.options import parse_lincls

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


PAGES = [*sorted(ROOT.glob("docs/*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for script in re.findall(r"python ((?:examples/|benchmarks/|main_)\w+\.py)", text):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("page", ["moco", "lightly", "solo-learn"])
def test_commands_for_those_who_come_from_elsewhere(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / f"docs/coming-from-{page}.md").read_text()
    ours = "\n".join(line.split(" | ")[-1].strip("| ") if line.startswith("|") else line for line in text.splitlines())
    found = re.findall(r"(?:torchrun --nproc_per_node=\d+|python) main_(moco|lincls)\.py ([^`\n]+)", ours)
    assert found
    for program, words in found:
        (parse_pretrain if program == "moco" else parse_lincls)(words.replace("... ", "").split())


def test_every_page_is_in_the_sites_navigation() -> None:
    """And every room of moco/ in the API reference."""
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")}
    assert listed == pages | {"index.md", "changelog.md", "contributing.md"}
    rooms = {path.stem for path in (ROOT / "moco").iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert {path.stem for path in ROOT.glob("docs/api/*.md")} == rooms
    for path in ROOT.glob("docs/api/*.md"):
        assert path.read_text() == f"::: moco.{path.stem}\n"


def test_the_picture_of_the_rooms_has_every_room_and_arrow() -> None:
    from docs import site

    graph = site.ROOMS.search((ROOT / "docs/architecture.md").read_text())
    assert graph
    drawn = site.picture(graph[1])
    assert set(re.findall(r">(\w+)</text>", drawn)) == set(re.findall(r"(\w+)\[", graph[1]))
    assert drawn.count("<path") - 1 == graph[1].count("-->")


def programs(text: str) -> list[tuple[str, list[str]]]:
    """(program, its words) of every `python ...` line in a page's blocks."""
    blocks = "".join(body for body in re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return [(line.split()[0], line.split()[1:]) for line in re.findall(r"^python (?:-m )?(.+)$", blocks, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_of_the_evaluation_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first block is run, in one process; the rest needs data sets that are not here, and is parsed."""
    monkeypatch.chdir(tmp_path)
    mains = {"main_moco.py": main_moco.main, "main_lincls.py": main_lincls.main, "moco.evaluate": evaluate.main}
    text = (ROOT / "docs" / "evaluation.md").read_text()
    first, rest = text.split("## The papers' protocols")
    commands = programs(first)
    assert len(commands) == 8
    for program, words in commands:
        assert mains[program](words) == 0, words
    measures = json.loads((tmp_path / "runs/digits/measures.json").read_text())
    assert all(title in first for title in ("kNN top-1", "effective rank", "tolerance"))
    assert set(measures["spaces"]) == {"trunk", "output"}
    protocols = [json.loads(path.read_text())["protocol"] for path in sorted(tmp_path.glob("runs/*/lincls.json"))]
    assert protocols == ["cached", "cached sweep", "moco", "sweep", "finetune"]
    commands = programs(rest)
    assert len(commands) == 11
    for program, words in commands:
        if program == "main_lincls.py":
            parse_lincls(words)
