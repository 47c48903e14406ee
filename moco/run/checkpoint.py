"""Checkpoint files that are whole or refused, written so that a crash at any moment leaves the previous one intact.

A file is written as moco/run/files.py says; its own SHA-256 travels inside it (moco/run/checksum.py).
It is in MoCo's layout and opens with plain `torch.load` anywhere. Whatever is wrong with a file that is read, or keeps
one from being written, is an InputError that names the fix.
"""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import IO, Any

import torch

from moco.errors import InputError
from moco.run.checksum import SummingWriter, check_bytes
from moco.run.files import write_file

_NAME = re.compile(r"checkpoint_(\d{4,})(?:_(\d{6,}))?\.pth\.tar")


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """MoCo's file name for the end of the 0-based `epoch`; with `step`, the name for after that many steps of it."""
    return f"checkpoint_{epoch:04d}.pth.tar" if step is None else f"checkpoint_{epoch:04d}_{step:06d}.pth.tar"


def position(path: str | Path) -> tuple[int, int] | None:
    """(epochs done, steps done in the next one) as the file's name tells; None if it is not a checkpoint's name."""
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        return None
    epoch, step = match.groups()
    return (int(epoch) + 1, 0) if step is None else (int(epoch), int(step))


def _check_loadable(value: Any, where: str) -> None:
    """TypeError if `load` would refuse `value` later, when it is too late."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_loadable(entry, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _check_loadable(entry, f"{where}[{index}]")
    elif type(value) not in (int, float, bool, str, bytes, type(None)) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values only")


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` so that `path` is, at every moment, the previous file or the new one. InputError if it cannot."""
    _check_loadable(state, "state")

    def write(file: IO[bytes]) -> None:
        writer = SummingWriter(file)
        torch.save(state, writer)  # type: ignore[arg-type]  # it needs `write` alone
        writer.finish()

    write_file(
        path,
        write,
        "make room or fix the folder's permissions, then go on with --resume auto (earlier checkpoints are untouched)",
    )


def load(path: str | Path) -> dict[str, Any]:
    """The dict in a checkpoint file, on the CPU. Ours are verified first, other projects' as far as their format lets.

    InputError: missing, a folder, empty, damaged, no checkpoint, or a pickle that would run code (weights_only=True).
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError(f"{path} is empty; use an earlier checkpoint")
            vouched = check_bytes(path, file)
            file.seek(0)
            state = _unpickle(path, file, vouched)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}; check the path") from error
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a checkpoint (a dict); check the path")
    return state


def _unpickle(path: Path, file: IO[bytes], vouched: bool) -> Any:
    start = file.read(2)
    file.seek(0)
    if start != b"PK" and start[:1] != b"\x80":  # a zip file, or torch's older format
        raise InputError(f"{path} is not a checkpoint that torch can read; check the path")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if names or "nsupported" in str(error):
            what = f" ({names[0]})" if names else ""
            raise InputError(
                f"{path} is refused: it holds Python objects other than tensors and plain values{what}, and loading "
                "them could run code; save it again with tensors, numbers, strings, lists and dicts only"
            ) from error
        raise InputError(f"{path} is not a checkpoint that torch can read; check the path") from error
    except Exception as error:  # bytes that are no checkpoint make torch raise nearly anything
        why = "needs another version of torch" if vouched else "is not a checkpoint that torch can read"
        raise InputError(f"{path} {why} ({type(error).__name__}); check the path") from error


def verify(path: str | Path) -> None:
    """InputError unless `load(path)` would succeed; for our own files by their checksum alone."""
    try:
        with open(path, "rb") as file:
            if check_bytes(Path(path), file):
                return
    except OSError:
        pass  # load says it better
    load(path)


def checkpoints(folder: str | Path) -> list[Path]:
    """The files in `folder` that bear a checkpoint's name, in the order of the positions that those tell."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if position(path)), key=lambda path: position(path) or (0, 0))


def latest(folder: str | Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest checkpoint in `folder` that verifies (None: there is none); each newer one with why it was skipped."""
    skipped: list[tuple[Path, str]] = []
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except InputError as error:
            skipped.append((path, str(error)))
        else:
            return path, skipped
    return None, skipped


def set_aside(folder: str | Path, after: tuple[int, int]) -> list[Path]:
    """Renames the checkpoints past `after` (the position resumed from) to *.aside, and returns their new names.

    They are damaged, or belong to a future that is now trained again; under their old names `latest` would find them.
    """
    renamed = []
    for path in checkpoints(folder):
        if (position(path) or after) > after:
            renamed.append(path.with_name(path.name + ".aside"))
            os.replace(path, renamed[-1])
    return renamed
