"""Writes and reads checkpoint files, and refuses damaged ones.

moco/run/files.py writes them, so a crash leaves the previous file intact. Each contains its own SHA-256
(moco/run/checksum.py). They have MoCo's layout, and plain `torch.load` opens them anywhere. A file that cannot be read
or written raises an InputError that names the fix.
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
    """Returns MoCo's file name for the end of the 0-based `epoch`.

    With `step`: the name after that many steps of the epoch.
    """
    return f"checkpoint_{epoch:04d}.pth.tar" if step is None else f"checkpoint_{epoch:04d}_{step:06d}.pth.tar"


def position(path: str | Path) -> tuple[int, int] | None:
    """Reads (epochs done, steps done in the next) from a file name.

    None if the file is not named as a checkpoint.
    """
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        return None
    epoch, step = match.groups()
    return (int(epoch) + 1, 0) if step is None else (int(epoch), int(step))


def _check_loadable(value: Any, where: str) -> None:
    """Raises TypeError if `load` would refuse `value` later."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_loadable(entry, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _check_loadable(entry, f"{where}[{index}]")
    elif type(value) not in (int, float, bool, str, bytes, type(None)) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values only")


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` to `path` atomically.

    InputError if it cannot be written.
    """
    _check_loadable(state, "state")

    def write(file: IO[bytes]) -> None:
        writer = SummingWriter(file)
        torch.save(state, writer)  # type: ignore[arg-type]  # it calls only `write`
        writer.finish()

    write_file(
        path,
        write,
        "make room or fix the folder's permissions, then go on with --resume auto (earlier checkpoints are untouched)",
    )


def load(path: str | Path) -> dict[str, Any]:
    """Loads the dict of a checkpoint file to the CPU.

    Files of this project are verified by their checksum, others as far as their format allows. InputError if the file
    is missing, a folder, empty, damaged, not a checkpoint, or a pickle that would run code (weights_only=True).
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
        raise InputError(f"cannot read the checkpoint {path}: {error.strerror or error}; check the path") from error
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
    except Exception as error:  # torch raises many kinds of errors for other files
        why = "needs another version of torch" if vouched else "is not a checkpoint that torch can read"
        raise InputError(f"{path} {why} ({type(error).__name__}); check the path") from error


def verify(path: str | Path) -> None:
    """Raises InputError unless `load(path)` would succeed.

    For this project's files it checks the checksum alone.
    """
    try:
        with open(path, "rb") as file:
            if check_bytes(Path(path), file):
                return
    except OSError:
        pass  # load gives the better message
    load(path)


def checkpoints(folder: str | Path) -> list[Path]:
    """Returns the checkpoint files in `folder`, in the order of their positions."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if position(path)), key=lambda path: position(path) or (0, 0))


def latest(folder: str | Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Returns the newest intact checkpoint, or None, and the skipped newer files.

    Each skipped file comes with its reason.
    """
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
    """Renames checkpoints past `after` to *.aside; returns their new names.

    after: the position resumed from. The later files are damaged, or their epochs are now trained again. Under their
    old names `latest` would find them.
    """
    renamed = []
    for path in checkpoints(folder):
        if (position(path) or after) > after:
            renamed.append(path.with_name(path.name + ".aside"))
            os.replace(path, renamed[-1])
    return renamed
