"""Shows a run's log on the console, in TensorBoard and in wandb.

A terminal gets a progress bar, any other console plain lines. Epoch, step, loss, accuracy and time left come first, so
that a narrow window shows what matters.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from moco.errors import InputError
from moco.metrics.table import LOGGED
from moco.run.files import write_text

FIRST = ("loss", "acc1", "eta_s")
_EVENTS = "events.out.tfevents."  # TensorBoard's files begin with it; ten digits of their start in seconds follow


def duration(seconds: float) -> str:
    """Formats a duration as 1d03h, 2h05m, 7m30s or 12s."""
    if not math.isfinite(seconds):
        return "?"
    s = round(max(0.0, seconds))
    minutes = s // 60
    hours = s // 3600
    days = s // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{s % 60:02d}s" if minutes else f"{s}s"


def _plain(name: str, form: str) -> Callable[[float], str]:
    return lambda value: f"{name} {value:{form}}"


# name of a value -> how it is shown. One that is not listed is shown as `name 0.1234`.
SHOWN: dict[str, Callable[[float], str]] = {
    **{name: _plain(name, row.console) for name, row in LOGGED.items()},
    **{name: _plain(name, form) for name, form in (("acc1", "5.1f"), ("acc5", "5.1f"), ("lr", ".4g"))},
    "images_per_s": lambda value: f"{value:.0f} img/s" if value >= 10 else f"{value:.2f} img/s",
    "tokens_per_s": lambda value: f"{value:.0f} tokens/s",
    "data_wait": lambda value: f"data wait {value:.0%}",
    "memory_gb": lambda value: f"{value:.2f} GB",
    "save_stall_s": lambda value: f"saving {value:.2f} s",
    "eta_s": lambda value: f"ETA {duration(value):>6}",
}


def _one(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name} {value}"
    if name in SHOWN:
        return SHOWN[name](value)
    return f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}"


def line(values: Mapping[str, Any]) -> str:
    """Formats `values` as one line.

    The names in FIRST come first, the others in their own order. Nested values are only in the log file.
    """
    names = [name for name in FIRST if name in values] + [name for name in values if name not in FIRST]
    return "  ".join(_one(name, values[name]) for name in names if not isinstance(values[name], (dict, list)))


class Console:
    """Prints plain lines to `stream`, by default stdout.

    Without a `stream`, and if stderr is a terminal, steps move a progress bar.
    """

    def __init__(self, stream: IO[str] | None = None):
        self._stream = stream
        self._terminal = stream is None and sys.stderr.isatty()
        self._bar: Any = None
        self._bar_epoch = -1

    def step(self, values: Mapping[str, Any], *, epoch: int, epochs: int, step: int, steps: int) -> None:
        if self._terminal:
            self.advance(epoch=epoch, epochs=epochs, step=step, steps=steps)
            self._bar.set_postfix_str(line(values))
        else:
            place = f"epoch {epoch + 1:{len(str(epochs))}d}/{epochs}  step {step:{len(str(steps))}d}/{steps}"
            self.line(f"{place}  {line(values)}")

    def advance(self, *, epoch: int, epochs: int, step: int, steps: int) -> None:
        if not self._terminal:
            return
        if self._bar is None or self._bar_epoch != epoch:
            from tqdm import tqdm  # only a terminal needs it

            self.close()
            title = f"epoch {epoch + 1}/{epochs}"
            self._bar = tqdm(total=steps, initial=step - 1, desc=title, dynamic_ncols=True)  # a resume starts inside
            self._bar_epoch = epoch
        self._bar.update(step - self._bar.n)

    def summary(self, kind: str, values: Mapping[str, Any], *, epoch: int) -> None:
        self.close()
        self.line(f"epoch {epoch + 1}  {kind}  {line(values)}")

    def line(self, text: str) -> None:
        stream = self._stream or sys.stdout
        if self._bar is not None:
            self._bar.write(text, file=stream)  # above the bar, not through it
        else:
            print(text, file=stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def open_tensorboard(folder: Path, from_step: int) -> Any:
    """Opens TensorBoard's writer for this folder.

    ImportError if it is not installed. from_step: the global step that the run goes on from. TensorBoard hides what was
    plotted past it.
    """
    from torch.utils.tensorboard import SummaryWriter

    _order_events(folder, int(time.time()))
    return SummaryWriter(str(folder), purge_step=from_step + 1)


def _order_events(folder: Path, second: int) -> None:
    """Renames event files so that they sort before one opened now.

    TensorBoard reads its files in the order of their names. A name begins with the second of its start. A restart
    within one second, or after a clock was set back, would be read first, and TensorBoard would hide its steps. second:
    the present time, in seconds since 1970.
    """
    first_late = f"{_EVENTS}{second:010d}"
    late = sorted(path for path in folder.glob(f"{_EVENTS}*") if path.name >= first_late)
    for path in late:
        started = path.name.removeprefix(_EVENTS)
        path.rename(folder / f"{_EVENTS}{second - 1:010d}.~{time.time_ns()}.{started}")  # ~ sorts after host names


def open_wandb(project: str, folder: Path, options: Mapping[str, Any]) -> Any:
    """Begins or continues wandb's run of this folder.

    InputError if wandb is not installed.
    """
    try:
        import wandb  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise InputError("wandb was asked for but is not installed; pip install wandb, or leave --wandb out") from error
    id_file = folder / "wandb_id"  # so that a resumed run goes on in the same curves
    run_id = id_file.read_text().strip() if id_file.exists() else None
    settings: dict[str, Any] = dict(project=project, dir=str(folder), config=dict(options), id=run_id, resume="allow")
    try:
        run = wandb.init(**settings)
    except Exception as error:  # a run goes on without a network or a key
        print(f"warning: wandb cannot connect ({error}); recording offline, for `wandb sync`", file=sys.stderr)
        run = wandb.init(mode="offline", **settings)
    write_text(id_file, run.id)
    return run
