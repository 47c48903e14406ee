"""What ends a run early, and the exit code that says so to the shell, to Slurm and to scripts."""

from __future__ import annotations

EXIT_OK = 0
EXIT_INPUT = 2  # the command line or the data: starting again without a change cannot help
EXIT_NUMERICS = 3  # a loss or a gradient that is not finite
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: everything is saved, start me again


class InputError(Exception):
    """Bad input: the message is one sentence that names the fix. The mains print it and exit with 2."""


class NumericsError(Exception):
    """Numbers gone wrong: the message names the step. The mains print it and exit with 3."""
