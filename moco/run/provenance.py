"""Describes the code and the machine of a run: commit, device, versions."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

COMMIT_FILE = ".commit"  # beside moco/ in a copy of the code made for a job: the commit that was copied


@functools.cache  # later edits of the files do not change the code that runs
def git_state() -> str:
    """Returns the commit of this code, with "-dirty" if files differ.

    Without git: the package's version.
    """
    here = Path(__file__).resolve().parent
    if (noted := here.parents[1] / COMMIT_FILE).exists():
        return noted.read_text().strip()
    try:
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # installed inside another project's tree?
        return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        try:
            return f"moco {version('moco')}"
        except PackageNotFoundError:
            return "unknown"


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def machine(device: torch.device) -> dict[str, str]:
    """Returns accelerator or processor, and the versions that can change results."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"device": name, "python": platform.python_version(), "torch": torch.__version__, "os": platform.platform()}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
