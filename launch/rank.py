"""Runs a module as `python -u -m MODULE ...` does, and ends the process as every command here ends.

submitit's own process takes the interpreter down after a job. A library's thread that is alive then can abort it, and
Slurm would call a finished job failed. So submitit is given `python -m launch.rank` as its Python.
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
