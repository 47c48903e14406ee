"""Writes the log of a run: JSON lines, console, TensorBoard, wandb.

`log.jsonl` is the record; everything else is a view of it. A record is

    {"kind": "train" | "epoch" | "eval" | "start" | "warning",
     "epoch": 3, "step": 40, "global_step": 1040, <values>, "timing": {...}}

with `global_step` the optimiser steps done when it was written. Except in "start" records, everything outside
"timing" is a function of data, options and seed, so two runs of the same command agree on it to the bit. Each line is
handed to the system when written, so a killed process loses none; a machine that dies can leave half a line, which
readers drop. A number that is not finite is written as the string "NaN", "Infinity" or "-Infinity", because JSON has
no such numbers; `read_log` turns it back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from moco.errors import InputError
from moco.run.files import cannot_write, write_bytes
from moco.run.log_views import Console, open_tensorboard, open_wandb

Values = Mapping[str, Any]  # name -> int, float, bool, str, None or nested dicts and lists of them

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def json_ready(value: Any) -> Any:
    """Returns `value` in JSON's types, also for scalars of NumPy and torch.

    A number that is not finite becomes its name.
    """
    if isinstance(value, Mapping):
        return {str(key): json_ready(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, int):
        return number
    number = float(number)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _restored(record: dict[str, Any]) -> dict[str, Any]:
    return {key: _NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Reads the records of a `log.jsonl`.

    An incomplete last line, from a killed process, is dropped. InputError if the file is missing or another line is not
    a JSON object.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]  # after the last newline: nothing, or half a record
    except OSError as error:
        raise InputError(f"cannot read the log {path}: {error.strerror or error}; check the path") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line, object_hook=_restored)
        except ValueError as error:
            raise InputError(f"{path} is damaged in line {number}; delete that line to read the rest") from error
        if not isinstance(record, dict):
            raise InputError(f"{path} line {number} is not a record of a run; check the path")
        records.append(record)
    return records


class RunLog:
    """Writes the log of one run in `folder`.

    On ranks other than 0 every method does nothing. tensorboard: also write scalars for TensorBoard, if the package is
    installed. wandb: name of a project, or None. console: where plain lines go instead of stdout.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rank: int = 0,
        tensorboard: bool = True,
        wandb: str | None = None,
        console: IO[str] | None = None,
    ):
        self.folder, self.path = Path(folder), Path(folder) / "log.jsonl"
        self.active = rank == 0
        self._tensorboard_wanted, self._wandb_project = tensorboard, wandb
        self._console = Console(console)
        self._file: IO[bytes] | None = None
        self._writer: Any = None
        self._wandb: Any = None
        self._from_step = 0

    # -- what the main calls -----------------------------------------------------------------------------------------

    def cut_back(self, global_step: int) -> int:
        """Drops the records past `global_step`, the step resumed from; returns how many.

        Call it before the first record. The file is replaced as a whole, so a kill leaves the old or the new one.
        """
        self._from_step = global_step
        if not self.active or not self.path.exists():
            return 0
        assert self._file is None, "cut_back must come before the first record"
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _belongs(line, global_step)]
        if len(kept) < len(lines):
            write_bytes(self.path, b"".join(kept))
        return len(lines) - len(kept)

    def start(self, values: Values, *, epoch: int = 0, global_step: int = 0) -> None:
        """Logs a start or resume: options, world size, git sha, machine."""
        if self.active:
            if self._wandb_project is not None:
                self._wandb = open_wandb(self._wandb_project, self.folder, json_ready(values))
            self._record("start", dict(epoch=epoch, global_step=global_step), values, None)

    def train(
        self,
        values: Values,
        timing: Values | None = None,
        *,
        epoch: int,
        step: int,
        steps: int,
        global_step: int,
        epochs: int,
    ) -> None:
        """Logs the losses and their parts after a step.

        step: counted from 1, of `steps`. epoch: 0-based.
        """
        if self.active:
            self._record("train", dict(epoch=epoch, step=step, global_step=global_step), values, timing)
            self._console.step({**values, **(timing or {})}, epoch=epoch, epochs=epochs, step=step, steps=steps)

    def advance(self, *, epoch: int, step: int, steps: int, epochs: int) -> None:
        """Moves the progress bar on a terminal; fast enough for every step."""
        if self.active:
            self._console.advance(epoch=epoch, epochs=epochs, step=step, steps=steps)

    def epoch(self, values: Values, timing: Values | None = None, *, epoch: int, global_step: int) -> None:
        """Logs the means of the 0-based `epoch`."""
        self._summary("epoch", values, timing, epoch, global_step)

    def eval(self, values: Values, timing: Values | None = None, *, epoch: int, global_step: int) -> None:
        """Logs the measures after the 0-based `epoch`."""
        self._summary("eval", values, timing, epoch, global_step)

    def warning(self, message: str, *, epoch: int, global_step: int, values: Values | None = None) -> None:
        """Logs and prints a warning."""
        if self.active:
            self._record("warning", dict(epoch=epoch, global_step=global_step, message=message), values or {}, None)
            self.say(f"warning: {message}")

    def say(self, text: str) -> None:
        """Prints one line on the console; it is not logged."""
        if self.active:
            self._console.line(text)

    def sync(self) -> None:
        """Syncs the log to disk.

        Call it before a checkpoint is written, so that after a power cut the log is as new as the checkpoint.
        """
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the log and ends the progress bar.

        A traceback or the shell's prompt then gets a line of its own.
        """
        self._console.close()
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            with contextlib.suppress(OSError):  # curves are a view: their error must not hide another
                self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._file = self._writer = self._wandb = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- how it is written -------------------------------------------------------------------------------------------

    def _summary(self, kind: str, values: Values, timing: Values | None, epoch: int, global_step: int) -> None:
        if self.active:
            self._record(kind, dict(epoch=epoch, global_step=global_step), values, timing)
            self._console.summary(kind, {**values, **(timing or {})}, epoch=epoch)

    def _record(self, kind: str, where: dict[str, Any], values: Values, timing: Values | None) -> None:
        record = {"kind": kind, **where, **json_ready(values)}
        if timing:
            record["timing"] = json_ready(timing)
        self._write(json.dumps(record, allow_nan=False).encode() + b"\n")
        if kind in ("train", "epoch", "eval"):
            self._plot(kind, where["global_step"], {**values, **(timing or {})})

    def _write(self, line: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            if self._file.write(line) < len(line):  # a disk that fills up takes a part without an error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise cannot_write(self.path, error, "make room, then go on with --resume auto") from error

    def _open(self) -> IO[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "ab", buffering=0)  # unbuffered: a record is one write, so a kill loses none
        whole = self.path.read_bytes().rfind(b"\n") + 1
        if whole < file.tell():
            file.truncate(whole)  # half a record of a dead machine: the next one must not follow on the same line
        return file

    def _plot(self, kind: str, global_step: int, values: Values) -> None:
        scalars = {f"{kind}/{name}": number for name, number in _numbers(values)}
        try:
            if self._tensorboard_wanted and self._writer is None:
                self._writer = open_tensorboard(self.folder / "tensorboard", self._from_step)
            if self._writer is not None:
                for name, number in scalars.items():
                    self._writer.add_scalar(name, number, global_step)
        except ImportError:
            self._tensorboard_wanted = False
            self.say("TensorBoard is not installed (pip install tensorboard): there is log.jsonl, but no curves")
        except OSError as error:  # curves are a view: they must not end a run
            self._writer, self._tensorboard_wanted = None, False
            self.say(f"warning: TensorBoard's curves end here, because they cannot be written: {error.strerror}")
        if self._wandb is not None:
            self._wandb.log(scalars, step=global_step)


def _belongs(line: bytes, global_step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line).get("global_step", 0) <= global_step
    except (ValueError, AttributeError, TypeError):
        return False  # a damaged line must not keep a run from going on


def _numbers(values: Values) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        plain = json_ready(value)
        plain = _NOT_FINITE.get(plain, plain) if isinstance(plain, str) else plain
        if isinstance(plain, (int, float)) and not isinstance(plain, bool):
            yield name, float(plain)
