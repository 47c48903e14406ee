"""Runs a module like `python -u -m MODULE ...`, and ends safely.

submitit's own process shuts the interpreter down after a job. A library's thread that still runs can abort it, and
Slurm would mark a finished job as failed. So submitit gets `python -m launch.rank` as its Python.
"""

from __future__ import annotations

import runpy
import sys
from functools import partial

from moco.commands import end_with


def run(words: list[str]) -> int:
    """Runs `words`: -u -m MODULE and its arguments. Returns the exit code."""
    start = words.index("-m") + 1
    sys.argv = words[start:]
    runpy.run_module(words[start], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    end_with(partial(run, sys.argv[1:]))
