"""Runs the training loop: steps, epochs, evaluations and saves."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor

from moco.data.loader import Loader
from moco.errors import EXIT_OK, EXIT_PREEMPTED
from moco.evaluate.online import OnlineEvaluator
from moco.losses.table import curves, set_epoch
from moco.pretrain import state as resume
from moco.pretrain.line import Line
from moco.pretrain.options import ResolvedPretrainOptions
from moco.pretrain.step import TrainingStep
from moco.pretrain.watch import Watch
from moco.run.log import RunLog
from moco.run.meter import Clock, Meter
from moco.run.preemption import Preemption
from moco.run.saves import Saves
from moco.schedules import key_momentum, learning_rate, learning_rate_by_step
from moco.timing import Profile, as_line, shares, timeline, waited_for


class Training:
    """Loops over epochs and steps.

    All that it changes is in `state.snapshot`. meters: the means since the last printed line, and those of the epoch.
    position: where the run begins or goes on.
    """

    def __init__(
        self,
        options: ResolvedPretrainOptions,
        loader: Loader,
        step: TrainingStep,
        meters: tuple[Meter, Meter],
        position: resume.Position,
        evaluate: OnlineEvaluator | None,
        log: RunLog,
        preemption: Preemption,
        profile: Profile,
    ) -> None:
        self.options = options
        self.loader = loader
        self.step = step
        self.position = position
        self.since_print, self.of_epoch = meters
        self.evaluate = evaluate
        self.log = log
        self.profile = profile
        self.watch = Watch(options, step, loader, log, position)
        self.clock = Clock()
        self.saves = Saves(options, log, preemption, snapshot=self._snapshot, check=self._check_numbers)
        self.line: Line | None = None  # the line that is not yet printed
        self.printed: dict[str, float] = {}  # the values of the last printed line

    def run(self) -> int:
        """Trains to the last epoch, or until preempted; returns the exit code."""
        timeline.start(self.step.device)
        while self.position.epoch < self.options.epochs:
            try:
                if not self.one_epoch():
                    return EXIT_PREEMPTED
            except BaseException:
                # a device that failed, or waits for a lost rank, may never finish the line
                if self.line is not None and self.line.arrived:
                    self._print()
                raise
            self.position = resume.Position(self.position.epoch + 1, 0, self.position.global_step)
            self._after_epoch(self.position.epoch - 1)
        self.saves.wait()
        return EXIT_OK

    def one_epoch(self) -> bool:
        """Trains the rest of the current epoch, from `position.step` on.

        Returns False if the run was preempted; then it has been saved.
        """
        options = self.options
        position = self.position
        epoch = self.position.epoch
        set_epoch(self.step.loss, options, epoch)
        self.step.moco.train()
        self.clock = Clock()
        began = timeline.totals()
        with contextlib.closing(self.loader.epoch(epoch, position.step)) as batches:
            for batch in waited_for(batches):
                printing = (position.step + 1) % options.print_freq == 0 or position.step + 1 == len(self.loader)
                lr = self._follow_schedules()
                sizes = self.loader.sampler.sizes(position.step)
                losses, measured = self.step(batch, epoch, sizes, measure=printing)
                position.step += 1
                position.global_step += 1
                self.clock.step(sum(sizes))
                self.since_print.add(losses, len(batch.index))
                self.of_epoch.add(losses, len(batch.index))
                self._print()  # the line of the step before
                if self.step.device.type == "cpu":
                    self._check_numbers()
                if printing:
                    self.line = self._line(measured, len(batch.index), lr)
                    if self.step.device.type == "cpu" or position.step == len(self.loader):
                        self._print()
                else:
                    self.log.advance(**self._where())
                self.profile.step()
                if self.saves.inside_epoch(position, len(self.loader)):
                    return False
        spent = shares(began, timeline.totals())
        self.log.epoch(self.of_epoch.read(), {"shares": spent}, epoch=epoch, global_step=position.global_step)
        self.log.say(f"epoch {epoch + 1}  time  {as_line(spent)}")
        if options.skip_bad_images:
            self.watch.bad_images(position)
        return True

    def _follow_schedules(self) -> float:
        """Sets learning rate and key momentum for `position`; returns the learning rate."""
        options = self.options
        at = self.position
        done = at.epoch + at.step / len(self.loader)  # in epochs
        schedule = (options.lr, options.epochs, options.schedule, options.cos, options.warmup_epochs)
        lr = learning_rate_by_step(done, *schedule) if options.lr_per_step else learning_rate(at.epoch, *schedule)
        self.step.guard.set_lr(lr)
        self.step.moco.m = key_momentum(options.moco_m, done, options.epochs, options.moco_m_cos)
        return lr

    def _where(self, at: resume.Position | None = None) -> dict[str, int]:
        """Returns a position, by default the present one, for the log."""
        at = at or self.position
        return dict(epoch=at.epoch, step=at.step, steps=len(self.loader), epochs=self.options.epochs)

    def _line(self, measured: dict[str, Tensor], samples: int, lr: float) -> Line:
        options = self.options
        position = self.position
        further = {"lr": lr, **curves(options, position.epoch)}
        if options.moco_m_cos or isinstance(options.moco_m, str):
            further["moco_m"] = self.step.moco.m
        return Line(position, self.step, self.watch, self.since_print, measured, samples, further)

    def _print(self) -> None:
        """Prints the pending line, if any; waits for its step."""
        if self.line is None:
            return
        line = self.line
        self.line = None
        at = line.position
        options = self.options
        steps = len(self.loader)
        self.printed = line.read(self.printed)
        timing = self.clock.lap(self.step.device, (options.epochs - self.position.epoch) * steps - self.position.step)
        timing |= self.saves.stall()
        self.log.train(self.printed, timing, **self._where(at), global_step=at.global_step)
        if at.step == steps or at.step % (100 * options.print_freq) == 0:
            self.watch.collapse(at, self.printed)

    def _check_numbers(self) -> None:
        """Raises NumericsError if a step was not applied. Waits for the device."""
        self._print()
        self.watch.numbers(self.position, self.printed)

    def _snapshot(self) -> dict[str, Any]:
        return resume.snapshot(self.step, [self.since_print, self.of_epoch], self.position, self.options)

    def _after_epoch(self, epoch: int) -> None:
        """Evaluates and saves after the 0-based `epoch`, if these are due."""
        last = epoch + 1 == self.options.epochs
        if self.evaluate and ((epoch + 1) % self.evaluate.every == 0 or last):
            online = self.step.online_probe
            measures = dict(self.evaluate(self.step.moco.encoder_q, online.classifier if online else None))
            self.log.eval(measures, epoch=epoch, global_step=self.position.global_step)
        self.saves.after_epoch(epoch, last)
