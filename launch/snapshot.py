"""Copies the code for one job.

Later edits do not change a job that waits, or that Slurm starts again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from moco.run.provenance import COMMIT_FILE, git_state

ROOT = Path(__file__).resolve().parent.parent
CODE = ("moco", "launch", "main_moco.py", "main_lincls.py")


def take(folder: Path) -> Path:
    """Copies the mains and what they import into `folder`; returns `folder`.

    The copy names the commit.
    """
    folder.mkdir(parents=True)
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)  # with times and caches: nothing is compiled anew
        else:
            shutil.copy2(ROOT / name, folder / name)
    # git in the copy would name the commit of the checkout around it
    (folder / COMMIT_FILE).write_text(git_state() + "\n")
    return folder


def environment(code: Path) -> dict[str, str]:
    """Returns variables with which `python -m` uses the copy in `code`.

    Without them it would use the files in the current folder.
    """
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")])),
        "PYTHONSAFEPATH": "1",
        # the number of threads decides how sums are rounded; torchrun takes 1 as well
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def python(code: Path) -> str:
    """Returns this interpreter with `environment`, as words for a shell.

    `env` replaces itself, so signals reach Python.
    """
    return shlex.join(["env", *(f"{name}={value}" for name, value in environment(code).items()), sys.executable])


def rank_python(code: Path) -> str:
    """Returns the same for submitit, which adds `-u -m MODULE`: see launch/rank.py."""
    return f"{python(code)} -u -m launch.rank"
