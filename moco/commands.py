"""Parses options, reports errors and ends the process of every command."""

from __future__ import annotations

import argparse
import atexit
import math
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from moco.errors import (
    ESCAPED,
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    EXIT_NUMERICS,
    EXIT_PREEMPTED,
    EXIT_RANK,
    InputError,
    NumericsError,
    RankError,
    SampleError,
)
from moco.world import World


class _Help(argparse.HelpFormatter):
    """Formats the help text of options.

    The value of an option is shown as N for a whole number, X for a number and PATH for a path. The default is added,
    unless it is empty or the text already has it.
    """

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kinds: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
        return kinds.get(getattr(action.type, "kind", action.type), action.dest.upper())

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        value = action.default
        if "default" in text or action.nargs == 0 or value in (None, "", [], argparse.SUPPRESS):
            return text
        words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{text} (default: {words})".replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """Raises an InputError of one sentence for a wrong command line.

    argparse itself would print the usage of about sixty flags.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help, **settings})

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse would drop the value of --option=-- and give the option an empty list
        if action.option_strings and "--" in arg_strings:
            self.error(f"argument {'/'.join(action.option_strings)}: -- is no value")
        return super()._get_values(action, arg_strings)


@dataclass(frozen=True)
class Number:
    """Converts the text of an option to a finite number.

    kind: int or float. least, most: the smallest and the largest allowed number. ArgumentTypeError for any other text.
    """

    kind: type[int] | type[float]
    least: float
    most: float = 2**31 - 1

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            wanted = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        if not (math.isfinite(value) and self.least <= value <= self.most):
            raise argparse.ArgumentTypeError(f"{text} must be at least {self.least:g}, and at most {self.most:g}")
        return value


# Warnings of the libraries that read images. Only a command hides them; an import of this package changes no filter.
_SAYS_NOTHING = (
    "The given (NumPy array|buffer) is not writable",  # pixels are only read
    "Palette images with Transparency",  # Pillow advises RGBA; alpha is dropped here anyway
    "Corrupt EXIF data",  # of EXIF only the orientation is wanted
)


def run_command(work: Callable[[], int]) -> int:
    """Calls `work` and returns the exit code of the command.

    An expected error becomes one line on stderr, and its exit code is returned. Every rank finds the same bad input, so
    only rank 0 prints it. A rank that lost another one prints the error itself. So does a rank that cannot read an
    image. Unforeseen errors are raised.
    """
    rank = World.launched().rank
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name in an unknown encoding must not end a run
            stream.reconfigure(errors=ESCAPED)
    for message in _SAYS_NOTHING:
        warnings.filterwarnings("ignore", message=message)
    try:
        return work()
    except (InputError, NumericsError) as error:
        if rank == 0 or isinstance(error, SampleError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_INPUT if isinstance(error, InputError) else EXIT_NUMERICS
    except RankError as error:
        print(f"error (seen by rank {rank}): {error}", file=sys.stderr, flush=True)
        return EXIT_RANK
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr, flush=True)
        return EXIT_INPUT
    except SystemExit as end:
        if end.code != EXIT_PREEMPTED:  # the code of a signal before the first step
            raise
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED


def end_with(main: Callable[[], int]) -> NoReturn:
    """Calls `main` and ends the process with its exit code.

    The code is 1 after an unforeseen error.
    """
    end_process(code_of(main))


def code_of(main: Callable[[], int]) -> int:
    """Returns the exit code that Python gives a process that calls `main`.

    It also prints what Python would print. `--help` and other libraries end by SystemExit, a bug by its traceback.
    """
    try:
        return main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def end_process(code: int) -> NoReturn:
    """Ends the process with `code`, and does not finalise the interpreter.

    First it waits for Python's threads, calls the atexit functions and flushes the output.

    While the interpreter is finalised, Python ends a daemon thread that returns from torch (`pthread_exit`). That
    unwinds C++ functions that must not be unwound: "terminate called without an active exception", signal 6. A run that
    ended well would then be reported as failed.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 1  # the reader of a pipe is gone, or the disk is full
    os._exit(code)
