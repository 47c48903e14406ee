"""Defines the exceptions that end a run, and the exit codes.

Shells, Slurm and scripts read the exit codes.
"""

from __future__ import annotations

import codecs
import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_RANK = 1  # a rank was lost, as with any uncaught error: starting again with --resume auto helps
EXIT_INPUT = 2  # the command line or the data: starting again without a change cannot help
EXIT_NUMERICS = 3  # a loss or a gradient that is not finite
EXIT_INTERRUPTED = 130  # Ctrl-C, as a shell reports it
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: everything is saved; start the same command again


class InputError(Exception):
    """Reports bad input.

    The message is one sentence that names the fix. The mains print it and exit with 2.
    """


class SampleError(InputError):
    """Reports an image that cannot be read.

    Only the rank that read the image has this error, so that rank prints it.
    """


class NumericsError(Exception):
    """Reports wrong numbers, such as a loss that is not finite.

    The message names the step, if there is one. The mains print it and exit with 3.
    """


class RankError(Exception):
    """Reports that a rank was killed, hangs or has failed.

    The message names the rank. The mains print it and exit with 1.
    """


def _escape(problem: UnicodeError) -> tuple[str, int]:
    """Escapes the characters that an encoding lacks.

    For example, a byte of a file's name that is not UTF-8 becomes \\xe9, and a euro sign becomes \\u20ac.
    """
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    wrong = problem.object[problem.start : problem.end]
    shown = (f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in wrong)
    return "".join(shown).encode("ascii", "backslashreplace").decode("ascii"), problem.end


ESCAPED = "moco-escaped"  # errors=ESCAPED: text with any file's name in it can be written
codecs.register_error(ESCAPED, _escape)


def flag(option: str) -> str:
    """Returns an option's spelling on the command line: moco_t -> --moco-t."""
    return "--" + option.replace("_", "-")


def did_you_mean(name: str, known: Iterable[str], most: int = 3) -> str:
    """Returns '; did you mean A, B?' with the nearest names.

    The result is empty if no name of `known` is near.
    """
    near = difflib.get_close_matches(name, list(known), most)
    return f"; did you mean {', '.join(near)}?" if near else ""
