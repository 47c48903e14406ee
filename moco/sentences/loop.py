"""Trains sentence encoders: steps, epochs, held-out measures and saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moco.errors import EXIT_OK, EXIT_PREEMPTED, NumericsError
from moco.run.log import RunLog
from moco.run.meter import Clock, Meter
from moco.run.preemption import Preemption
from moco.run.resume import Position
from moco.run.saves import Saves
from moco.sentences.classification import LabelledSentences, classify
from moco.sentences.corpus import Corpus
from moco.sentences.measures import encode, held_out_measures
from moco.sentences.options import SentenceOptions
from moco.sentences.sampler import WindowSampler
from moco.sentences.state import snapshot
from moco.sentences.step import TrainingStep
from moco.sentences.vocabulary import Vocabulary
from moco.timing import stage, timeline


@dataclass
class Training:
    """Runs the training loop.

    `snapshot` returns everything that the loop changes.
    """

    options: SentenceOptions
    device: torch.device
    text: Corpus
    held_out: Corpus
    vocabulary: Vocabulary
    sampler: WindowSampler
    step: TrainingStep
    meters: list[Meter]  # means since the last line, means of the epoch
    position: Position
    labelled: list[LabelledSentences]
    log: RunLog
    preemption: Preemption

    def run(self) -> int:
        options = self.options
        self.saves = Saves(options, self.log, self.preemption, snapshot=self.snapshot, check=self.check_numbers)
        self.began_at = self.position.global_step
        while self.position.epoch < options.epochs:
            if not self.one_epoch():
                return EXIT_PREEMPTED
            epoch = self.position.epoch
            self.position = Position(epoch + 1, 0, self.position.global_step)
            last = epoch + 1 == options.epochs
            found = self.evaluate(last)
            if found:
                self.log.eval(found, epoch=epoch, global_step=self.position.global_step)
            self.saves.after_epoch(epoch, last)
        self.saves.wait()
        return EXIT_OK

    def one_epoch(self) -> bool:
        """Trains the rest of the epoch.

        Returns False if the run was preempted; then it has been saved.
        """
        options = self.options
        position = self.position
        epoch = position.epoch
        steps = len(self.sampler)
        starts = self.sampler.starts(epoch)
        timeline.start(self.device)
        clock = Clock("tokens")
        of_batch = Meter()
        since_print, of_epoch = self.meters
        while position.step < steps:
            start = int(starts[position.step])
            own = self.sampler.own(start)
            with stage("data wait"):
                sentences = self.text.batch(own, self.device)
            printing = (position.step + 1) % options.print_freq == 0 or position.step + 1 == steps
            losses, measured = self.step(sentences, measure=printing)
            position.step += 1
            position.global_step += 1
            clock.step(self.text.words(start, start + options.batch_size))
            for meter in self.meters:
                meter.add(losses, len(own))
            where = dict(epoch=epoch, step=position.step, steps=steps, epochs=options.epochs)
            if printing or self.device.type == "cpu":
                self.check_numbers()
            if printing:
                of_batch.add(measured, len(own))
                values = {**since_print.read(), **of_batch.read(), "lr": options.lr}
                timing = clock.lap(self.device, (options.epochs - epoch) * steps - position.step)
                timing |= self.saves.stall()
                self.log.train(values, timing, **where, global_step=position.global_step)
            else:
                self.log.advance(**where)
            if self.saves.inside_epoch(position, steps):
                return False
        self.log.epoch(of_epoch.read(), epoch=epoch, global_step=position.global_step)
        return True

    def evaluate(self, last: bool) -> dict[str, Any]:
        """Measures the held-out text; after the last epoch also --classify."""
        found: dict[str, Any] = {}
        if len(self.held_out) > 1:
            found |= held_out_measures(*encode(self.step.pair, self.held_out, self.device))
        for data in self.labelled if last else ():
            options = self.options
            result = classify(
                self.step.pair, data, self.vocabulary, options.longest, self.device, options.folds, say=self.log.say
            )
            found[f"val_{data.name.lower()}_acc1"] = result["accuracy"]
        return found

    def check_numbers(self) -> None:
        """Raises NumericsError if a gradient was not finite.

        It waits for the device.
        """
        if bad := self.step.not_applied():
            step = self.began_at + bad
            in_epoch = self.position.step - 1 - (self.position.global_step - step)
            first = int(self.sampler.starts(self.position.epoch)[in_epoch])
            raise NumericsError(
                f"the gradient of step {step} (sentences {first} to {first + self.options.batch_size - 1}) is not"
                " finite, so that step was not applied; the checkpoints before it are good: lower --lr or raise the"
                " temperature"
            )

    def snapshot(self) -> dict[str, Any]:
        return snapshot(self.step, self.meters, self.position, self.options, self.vocabulary, self.text.digest)
