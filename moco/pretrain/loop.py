"""The training loop: steps, epochs, evaluations and saves."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import torch

from moco import distributed
from moco.builder import MoCo
from moco.data.loader import Loader
from moco.errors import EXIT_OK, EXIT_PREEMPTED
from moco.evaluate.online import OnlineEvaluator
from moco.losses.table import curves, set_epoch
from moco.pretrain import state as resume
from moco.pretrain.options import PretrainOptions
from moco.pretrain.step import TrainingStep
from moco.pretrain.watch import Watch
from moco.run import checkpoint
from moco.run.log import RunLog
from moco.run.meter import Clock, Meter
from moco.run.preemption import Preemption
from moco.run.saver import Every, Saver
from moco.schedules import learning_rate
from moco.timing import Profile, as_line, shares, timeline, waited_for


@dataclass
class Training:
    """The loop. `position` says where it is; everything it changes is in `resume.snapshot`."""

    options: PretrainOptions
    device: torch.device
    loader: Loader
    model: MoCo
    step: TrainingStep
    meters: list[Meter]  # means since the last line, means of the epoch
    position: resume.Position
    evaluate: OnlineEvaluator | None
    log: RunLog
    preemption: Preemption
    profile: Profile

    def run(self) -> int:
        options = self.options
        timeline.start(self.device)
        self.saver = None
        if distributed.rank() == 0:
            self.saver = Saver(options.output_dir, options.keep_last, options.keep_every)
        self.every, self.save_stall = Every(options.save_every), 0.0
        self.watch = Watch(options, self.step, self.loader, self.log, self.position)
        self.values: dict[str, float] = {}  # as last printed
        while self.position.epoch < options.epochs:
            if not self.one_epoch():
                return EXIT_PREEMPTED
            epoch = self.position.epoch
            self.position = resume.Position(epoch + 1, 0, self.position.global_step)
            last = epoch + 1 == options.epochs
            if self.evaluate and ((epoch + 1) % self.evaluate.every == 0 or last):
                found = dict(self.evaluate(self.model.encoder_q))
                self.log.eval(found, epoch=epoch, global_step=self.position.global_step)
            if (epoch + 1) % options.save_freq == 0 or last:
                self.save(checkpoint.checkpoint_name(epoch))
        if self.saver:
            self.saver.wait()
        return EXIT_OK

    def one_epoch(self) -> bool:
        """The rest of the current epoch, from `position.step` on. False if it was preempted, and saved."""
        options, position, epoch, steps = self.options, self.position, self.position.epoch, len(self.loader)
        lr = learning_rate(epoch, options.lr, options.epochs, options.schedule, options.cos, options.warmup_epochs)
        self.step.guard.set_lr(lr)
        set_epoch(self.step.loss, options, epoch)
        self.model.train()
        clock, of_batch, (since_print, of_epoch), began = Clock(), Meter(), self.meters, timeline.totals()
        with contextlib.closing(self.loader.epoch(epoch, position.step)) as batches:
            asked = time.perf_counter()
            for batch in waited_for(batches):
                clock.waited(asked)
                printing = (position.step + 1) % options.print_freq == 0 or position.step + 1 == steps
                losses, measured = self.step(batch, epoch, self.loader.sampler.sizes(position.step), measure=printing)
                position.step += 1
                position.global_step += 1
                clock.step(options.batch_size)
                for meter in self.meters:
                    meter.add(losses, len(batch.index))
                where = dict(epoch=epoch, step=position.step, steps=steps, epochs=options.epochs)
                if printing or self.device.type == "cpu":
                    self.watch.numbers(position, self.values)
                if printing:
                    self.watch.agreement(position)
                    of_batch.add(measured, len(batch.index))
                    self.values = {**since_print.read(), **of_batch.read(), "lr": lr, **curves(options, epoch)}
                    timeline.totals()
                    timing = clock.lap(self.device, (options.epochs - epoch) * steps - position.step)
                    if self.save_stall:
                        timing["save_stall_s"], self.save_stall = self.save_stall, 0.0
                    self.log.train(self.values, timing, **where, global_step=position.global_step)
                    if position.step == steps or position.step % (100 * options.print_freq) == 0:
                        self.watch.collapse(position, self.values)
                else:
                    self.log.advance(**where)
                self.profile.step()
                wanted = self.every.due(position.global_step) and position.step < steps
                preempted, due = distributed.any_rank(bool(self.preemption), wanted)
                if preempted or due:
                    self.watch.numbers(position, self.values)  # else a step not applied would be saved and forgotten
                    self.save(checkpoint.checkpoint_name(epoch, position.step))
                if preempted:
                    if self.saver:
                        self.saver.wait()
                    signal = self.preemption.name or "a signal to another rank"
                    self.log.say(
                        f"{signal}: saved after epoch {epoch + 1}, step {position.step}; go on with --resume auto"
                    )
                    return False
                asked = time.perf_counter()
        spent = shares(began, timeline.totals())
        self.log.epoch(of_epoch.read(), {"shares": spent}, epoch=epoch, global_step=position.global_step)
        self.log.say(f"epoch {epoch + 1}  time  {as_line(spent)}")
        if options.skip_bad_images:
            self.watch.bad_images(position)
        return True

    def save(self, name: str) -> None:
        state = resume.snapshot(self.step, self.meters, self.position, self.options)
        self.log.sync()
        if self.saver:
            self.save_stall += self.saver.submit(state, name)
        self.every.saved()
