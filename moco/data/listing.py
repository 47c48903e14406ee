"""Lists the files below a folder, each file once.

It handles links that loop, named pipes and folders that cannot be read.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from moco.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
Identity = tuple[int, int]  # device and inode


class Entries(NamedTuple):
    """Holds the sorted names in a folder, without hidden ones."""

    folders: list[str]  # links to folders after the others
    files: list[str]  # also broken links: reading such an image gives the error
    others: list[str]  # named pipes, sockets, devices


def says_what_cannot_be_read(function: Callable[P, T]) -> Callable[P, T]:
    """Makes `function` raise InputErrors with the path instead of OSErrors."""

    @functools.wraps(function)
    def checked(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return function(*arguments, **named)
        except OSError as problem:
            raise InputError(
                f"cannot read {problem.filename or 'the data'}: {problem.strerror or problem}; check the path, and "
                "that this user may read it"
            ) from None

    return checked


def entries(folder: Path) -> Entries:
    """Lists the entries of `folder`. Raises OSError if that fails."""
    folders: list[tuple[bool, str]] = []
    files: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if _is(entry.is_dir):
                folders.append((entry.is_symlink(), entry.name))
            elif _is(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path)):
                files.append(entry.name)
            else:
                others.append(entry.name)
    return Entries([name for _, name in sorted(folders)], sorted(files), sorted(others))


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself, or into a folder that cannot be read
        return False


def around(folder: Path) -> set[Identity]:
    """Returns the identities of a folder and its parents.

    A link to one of them loops.
    """
    real = folder.resolve()
    return {_identity(place) for place in (real, *real.parents)}


def leads_back(folder: Path, seen: set[Identity]) -> bool:
    """Returns True if `folder` is one of `seen`."""
    return _identity(folder) in seen


def files_below(folder: Path) -> tuple[list[str], list[str]]:
    """Returns (files, what was left out), as sorted paths relative to `folder`.

    Links are followed. Pipes and the like are left out. A folder that is reached a second time is left out too,
    because a link that loops would be followed for ever. The path without links has priority. Raises OSError if a
    folder cannot be listed.
    """
    files: list[str] = []
    left_out: list[str] = []
    seen = around(folder)
    plain = deque([""])
    links = deque[str]()
    while plain or links:
        inner = plain.popleft() if plain else links.popleft()
        if inner:
            if leads_back(folder / inner, seen):
                left_out.append(f"{inner} (a link to a folder that is read already)")
                continue
            seen.add(_identity(folder / inner))
        found = entries(folder / inner)
        prefix = f"{inner}/" if inner else ""
        files += [prefix + name for name in found.files]
        left_out += [f"{prefix}{name} (not a file)" for name in found.others]
        for name in found.folders:
            (links if (folder / inner / name).is_symlink() else plain).append(prefix + name)
    return sorted(files), sorted(left_out)


def _identity(path: Path) -> Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino
