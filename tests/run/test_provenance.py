"""Which code and which machine."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moco.run import provenance


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """The commit is asked for once a process."""
    provenance.git_state.cache_clear()
    yield
    provenance.git_state.cache_clear()


def git(folder: Path, *words: str) -> None:
    me = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *me, *words], check=True, capture_output=True)


def copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the file at FOLDER/moco/run/provenance.py, taken for the one that runs."""
    (folder / "moco/run").mkdir(parents=True)
    path = folder / "moco/run/provenance.py"
    shutil.copy(provenance.__file__, path)
    monkeypatch.setattr(provenance, "__file__", str(path))
    return path


def test_commit_and_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy(tmp_path, monkeypatch)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "v1")  # a tag is not a commit that can be looked up years later
    clean = provenance.git_state()
    assert re.fullmatch("[0-9a-f]{40}", clean)
    path.write_text(path.read_text() + "\n")
    assert provenance.git_state() == clean, "of the files as they were when the process began"
    provenance.git_state.cache_clear()
    assert provenance.git_state() == f"{clean}-dirty"


def test_another_projects_commit_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed in a virtual environment inside somebody's repository."""
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs").touch()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "theirs")
    copy(tmp_path / ".venv/lib", monkeypatch)
    monkeypatch.setattr(provenance, "version", lambda name: "1.2.3")
    assert provenance.git_state() == "moco 1.2.3"


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(provenance, "version", lambda name: "1.2.3")
    assert provenance.git_state() == "moco 1.2.3"
    provenance.git_state.cache_clear()
    (tmp_path / provenance.COMMIT_FILE).write_text("abc-dirty\n")  # a job's copy of the code says it itself
    assert provenance.git_state() == "abc-dirty"


def test_machine() -> None:
    machine = provenance.machine(torch.device("cpu"))
    assert machine["torch"] == torch.__version__ and machine["python"] == platform.python_version()
    assert machine["device"] and machine["os"] and sys.platform in machine["os"].lower()
