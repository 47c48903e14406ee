"""Notices the signals that come before the machine is taken away.

Slurm sends SIGTERM before it ends or preempts a job, `sbatch --signal=USR1@120` asks for SIGUSR1 two minutes ahead, and
submitit sends SIGUSR2. The handler does one thing: it stores a number. Anything more would run between two arbitrary
byte codes, in the middle of a collective or of a save. The training loop checks the number after each step. The ranks
agree there, because the signal may reach one of them first. Then they save and exit with EXIT_PREEMPTED.

While the images are listed there is nothing to save, and a network disk may hang for hours. A signal then ends the
process at once, with the same exit code.

Data is loaded by threads, which never receive signals in Python. So no child process has to ignore them.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from moco.errors import EXIT_PREEMPTED

# Windows has no SIGUSR1 and SIGUSR2: only Ctrl-C and SIGTERM can come there.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class Preemption:
    """Stores the first signal of SIGNALS: `with Preemption() as preemption:`.

    `preemption.signal` is its number; a second signal changes nothing. Before `steps_follow` a signal raises
    SystemExit(EXIT_PREEMPTED).

    At exit the handlers found at entry are put back, so it nests. After a signal the process is about to end, and all
    three are ignored from then on. Another signal, while the interpreter shuts down, would end the process and replace
    its exit code. Only the main thread may enter (Python's rule for handlers).
    """

    def __init__(self) -> None:
        self.signal = 0  # the first signal's number
        self._steps_follow = False
        self._previous: dict[int, Any] = {}

    def steps_follow(self) -> None:
        """Makes signals wait, from now on, until the loop checks for them."""
        self._steps_follow = True

    def __bool__(self) -> bool:
        return self.signal != 0

    @property
    def name(self) -> str:
        """Returns SIGTERM, SIGUSR1 or SIGUSR2; empty if none came."""
        return signal.Signals(self.signal).name if self.signal else ""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = not self.signal
        self.signal = self.signal or number
        if first and not self._steps_follow:
            # not print(): the signal may have interrupted one
            os.write(2, f"{self.name} before the first step: nothing to save; start the same command again\n".encode())
            raise SystemExit(EXIT_PREEMPTED)

    def __enter__(self) -> Preemption:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if self.signal else handler or signal.SIG_DFL)
