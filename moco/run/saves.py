"""Saves a training run inside epochs, after epochs, and at preemption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moco import distributed
from moco.run.checkpoint import checkpoint_name
from moco.run.log import RunLog
from moco.run.options import SavingOptions
from moco.run.preemption import Preemption
from moco.run.resume import Position
from moco.run.saver import Every, Saver


class Saves:
    """Decides when one run saves, and saves it.

    All ranks call the same methods together; rank 0 writes. snapshot: returns all that the run changes. check: raises
    if a step was not applied. It is called before each save inside an epoch, because a checkpoint must not hide such a
    step.
    """

    def __init__(
        self,
        options: SavingOptions,
        log: RunLog,
        preemption: Preemption,
        snapshot: Callable[[], dict[str, Any]],
        check: Callable[[], None],
    ) -> None:
        self.options = options
        self.log = log
        self.preemption = preemption
        self.snapshot = snapshot
        self.check = check
        self.every = Every(options.save_every)
        self.vote = distributed.LateVote()
        self.stalled = 0.0  # seconds that saves have held up the steps since `stall` was read
        self.saver = None
        if distributed.rank() == 0:
            self.saver = Saver(options.output_dir, options.keep_last, options.keep_every)

    def inside_epoch(self, position: Position, steps: int) -> bool:
        """Saves after a step if any rank wants it.

        Returns True if the run is preempted, and is saved. steps: those of the whole epoch. A signal may reach one
        rank alone, and the ranks' clocks differ. The other ranks follow after the next step, or at once after the
        epoch's last.
        """
        ended = position.step == steps
        wanted = self.every.due(position.global_step)
        alone = wanted and self.every.by_clock
        preempted, due = self.vote(bool(self.preemption), alone, now=ended)
        if preempted or ((due or (wanted and not alone)) and not ended):
            self.check()
            self._save(checkpoint_name(position.epoch, position.step))
        if preempted:
            self.wait()
            signal = self.preemption.name or "a signal to another rank"
            self.log.say(
                f"{signal}: saved after epoch {position.epoch + 1}, step {position.step}; go on with --resume auto"
            )
        return preempted

    def after_epoch(self, epoch: int, last: bool) -> None:
        """Saves after every --save-freq epochs, and after the last.

        epoch: 0-based.
        """
        if (epoch + 1) % self.options.save_freq == 0 or last:
            self._save(checkpoint_name(epoch))

    def stall(self) -> dict[str, float]:
        """Returns {"save_stall_s": seconds} since the last call; {} if there was none."""
        stalled = self.stalled
        self.stalled = 0.0
        return {"save_stall_s": stalled} if stalled else {}

    def wait(self) -> None:
        """Waits until the last save is on disk. InputError if it failed."""
        if self.saver:
            self.saver.wait()

    def _save(self, name: str) -> None:
        """Copies the state; a thread writes it."""
        state = self.snapshot()
        self.log.sync()
        if self.saver:
            self.stalled += self.saver.submit(state, name)
        self.every.saved()
