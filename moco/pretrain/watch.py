"""What a run says when something is wrong with its numbers or its images, and when it ends because of it."""

from __future__ import annotations

from collections.abc import Mapping

from moco import distributed
from moco.data.loader import Loader
from moco.errors import NumericsError
from moco.pretrain import health
from moco.pretrain.options import PretrainOptions, as_dict
from moco.pretrain.state import Position
from moco.pretrain.step import TrainingStep
from moco.run.log import RunLog
from moco.run.provenance import git_state


class Watch:
    """All ranks must call each method together. `values` are those last printed."""

    def __init__(
        self, options: PretrainOptions, step: TrainingStep, loader: Loader, log: RunLog, position: Position
    ) -> None:
        self.options, self.step, self.loader, self.log = options, step, loader, log
        self.agreed = position.global_step
        self.left_out = 0

    def numbers(self, at: Position, values: Mapping[str, float]) -> None:
        """A step that was not applied is written down, and ends the run unless --max-bad-steps lets it pass. Waits for
        the device."""
        bad, first = self.step.not_applied()
        if not first:
            return
        options = self.options
        step = at.step - 1 - (at.global_step - first)
        details = {"loss_scale": self.step.scaler.get_scale(), "git": git_state(), "options": as_dict(options)}
        name = health.write_repro(self.loader.sampler, at.epoch, step, first, values, details, options.output_dir)
        what = f"the gradient of step {first} is not finite, so that step was not applied; its batch is in {name}"
        if bad > options.max_bad_steps:
            raise NumericsError(
                f"{what}; the checkpoints before it are good: lower --lr, raise the temperature, pass --amp off or"
                " --grad-clip, or let some steps pass with --max-bad-steps"
            )
        self.warn(what, at)

    def agreement(self, at: Position) -> None:
        """NumericsError if the ranks do not hold the same bits any more."""
        self.agreed = health.check_agreement(self.step.moco, self.agreed, at.global_step)

    def collapse(self, at: Position, values: Mapping[str, float]) -> None:
        if message := health.collapse(values):
            self.warn(message, at)

    def bad_images(self, at: Position) -> None:
        """Says how many images could not be read, whenever they have become more; each rank knows those it met."""
        mine = {self.loader.source.name(index): why for index, why in self.loader.bad.items()}
        bad = {name: why for part in distributed.gather_objects(mine) for name, why in part.items()}
        if len(bad) > self.left_out:
            self.left_out = len(bad)
            name, why = min(bad.items())
            what = f"images that cannot be read, each replaced by the next one: {len(bad)}, such as {name} ({why})"
            self.warn(what, at)

    def warn(self, message: str, at: Position) -> None:
        self.log.warning(message, epoch=at.epoch, global_step=at.global_step)
