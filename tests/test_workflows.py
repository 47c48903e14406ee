"""The workflows of .github: valid YAML, and every make target they name exists. Nothing here needs GitHub."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from docs import site

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = [*ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "environment.yml"]


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_make_target_of_a_workflow_exists(path: Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    named = re.findall(r"^make ([a-z-]+)", "\n".join(commands), re.MULTILINE)
    assert named, "a workflow runs what a person can run"
    assert set(named) <= targets()
    assert all("permissions" in yaml.safe_load(path.read_text()) for path in WORKFLOWS)


def test_they_run_what_ci_runs() -> None:
    made = set(re.findall(r"^make ([a-z-]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert made == {"test", "test-slurm"}
    text = "".join(path.read_text() for path in WORKFLOWS)
    assert "make test-slurm SLURM=required" in text
    parts = re.search(r"^test: (.*?) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert parts and all(f"make {part}" in text for part in parts[1].split())


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_the_other_yaml_files_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_oldest_set_is_that_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    needed = text.split("[project.optional-dependencies]")[0]
    bounds = dict(re.findall(r'^    "([\w-]+)>=([\d.]+)",$', needed, re.MULTILINE))
    lines = (ROOT / "requirements-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if "==" in line)
    assert bounds.keys() <= oldest.keys()
    for name, bound in bounds.items():
        assert (oldest[name] + ".0").startswith(bound + "."), name
    assert 'requires-python = ">=3.10"' in text
    assert 'python-version: "3.10"' in (ROOT / ".github/workflows/tests.yml").read_text()


def owner_of(address: str | None) -> str | None:
    """The account of a repository's address."""
    found = re.fullmatch(r"https://[\w.-]+/([\w.-]+)/[\w.-]+", address or "")
    return found[1] if found else None


def test_code_owners_belong_to_the_repository() -> None:
    """A name that the host does not know would be an error on every page of a pull request."""
    owner = owner_of(site.repository())
    lines = (ROOT / ".github/CODEOWNERS").read_text().splitlines()
    named = {word for line in lines if not line.startswith("#") for word in line.split()[1:]}
    assert {word.removeprefix("@").split("/")[0] for word in named} <= {owner} - {None}
    rules = [line.lstrip("# ").split() for line in lines]
    paths = [words[0] for words in rules if words and words[-1].startswith("@")]
    assert len(paths) == 4 and all(path == "*" or (ROOT / path.lstrip("/")).exists() for path in paths)


@pytest.mark.parametrize("address", [None, "https://example.org/somebody/moco"])
def test_the_address_of_the_repository_stands_in_one_place(
    address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = f'[project.urls]\nRepository = "{address}"\n' if address else ""
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\n{added}')
    monkeypatch.setattr(site, "ROOT", tmp_path)
    assert site.on_config(SimpleNamespace(repo_url=None)).repo_url == address
    assert site.on_config(SimpleNamespace(repo_url="https://a.org/b/c")).repo_url == "https://a.org/b/c"
    assert owner_of(site.repository()) == ("somebody" if address else None)
    assert "repo_url" not in (ROOT / "mkdocs.yml").read_text()


def test_ruff_of_the_hooks_is_ruff_of_the_tests() -> None:
    pinned = re.search(r"^ruff==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    assert pinned and f"rev: v{pinned[1]}" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_actionlint() -> None:
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip("no actionlint on this machine")
    done = subprocess.run([program, *map(str, WORKFLOWS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
