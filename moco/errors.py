"""Exceptions that end a run, and the exit codes for shell, Slurm and scripts."""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_RANK = 1  # a rank was lost, as with any uncaught error: starting again with --resume auto helps
EXIT_INPUT = 2  # the command line or the data: starting again without a change cannot help
EXIT_NUMERICS = 3  # a loss or a gradient that is not finite
EXIT_INTERRUPTED = 130  # Ctrl-C, as a shell reports it
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: everything is saved, start me again


class InputError(Exception):
    """Bad input: the message is one sentence that names the fix. The mains print it and exit with 2."""


class SampleError(InputError):
    """An image that cannot be read: only the rank it was dealt to knows, so that rank prints it."""


class NumericsError(Exception):
    """Numbers gone wrong: the message names the step. The mains print it and exit with 3."""


class RankError(Exception):
    """A rank was killed, hangs or has failed: the message names it. The mains print it and exit with 1."""


def _escape(problem: UnicodeError) -> tuple[str, int]:
    """The bytes of a file's name that are not UTF-8 as \\xe9, other characters that an encoding lacks as \\u00e9."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    wrong = problem.object[problem.start : problem.end]
    shown = (f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in wrong)
    return "".join(shown).encode("ascii", "backslashreplace").decode("ascii"), problem.end


ESCAPED = "moco-escaped"  # errors=ESCAPED: text with any file's name in it can be written
codecs.register_error(ESCAPED, _escape)


def flag(option: str) -> str:
    """The spelling of an option on the command line: moco_t -> --moco-t."""
    return "--" + option.replace("_", "-")


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """'; did you mean A, B?' with the nearest of `known`; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), most)
    return f"; did you mean {', '.join(near)}?" if near else ""
