"""Runs a module as `python -u -m MODULE ...` does, and ends the process as every command here ends.

submitit's own process takes the interpreter down after a job. A library's thread that is alive then can abort it, and
Slurm would call a finished job failed. So submitit is given `python -m launch.rank` as its Python.
"""

from __future__ import annotations

import runpy
import sys
import traceback

from moco.commands import end_process


def run(words: list[str]) -> int:
    """Runs `words`: -u -m MODULE and its arguments. Returns the exit code."""
    start = words.index("-m") + 1
    module = words[start]
    sys.argv = words[start:]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    end_process(run(sys.argv[1:]))
