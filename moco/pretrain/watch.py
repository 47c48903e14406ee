"""Checks a run's numbers and images; warns or raises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco import distributed
from moco.builder import MoCo
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.distributed import gather_rows, rank, world_size
from moco.errors import NumericsError
from moco.pretrain.options import PretrainOptions
from moco.pretrain.state import Position
from moco.pretrain.step import TrainingStep
from moco.randomness import Purpose, stream_key
from moco.run.files import write_json
from moco.run.log import RunLog, json_ready
from moco.run.options import as_dict
from moco.run.provenance import git_state


class Watch:
    """Checks one run. All ranks must call each method together.

    `values` are those last printed.
    """

    def __init__(
        self, options: PretrainOptions, step: TrainingStep, loader: Loader, log: RunLog, position: Position
    ) -> None:
        self.options = options
        self.step = step
        self.loader = loader
        self.log = log
        self.agreed = position.global_step
        self.left_out = 0

    def numbers(self, at: Position, values: Mapping[str, float], report: tuple[int, int] | None = None) -> None:
        """Logs a step that was not applied.

        It ends the run unless --max-bad-steps allows the step. report: the result of `not_applied` after the step `at`;
        None asks it, which waits for the device.
        """
        bad, first = report or self.step.guard.not_applied()
        if not first:
            return
        options = self.options
        step = at.step - 1 - (at.global_step - first)
        details = {"loss_scale": self.step.guard.scaler.get_scale(), "git": git_state(), "options": as_dict(options)}
        name = write_repro(self.loader.sampler, at.epoch, step, first, values, details, options.output_dir)
        what = f"the gradient of step {first} is not finite, so that step was not applied; its batch is in {name}"
        if bad > options.max_bad_steps:
            raise NumericsError(
                f"{what}; the checkpoints before it are good: lower --lr, raise the temperature, pass --amp off or"
                " --grad-clip, or let some steps pass with --max-bad-steps"
            )
        self.warn(what, at)

    def fingerprints(self) -> Tensor | None:
        """Returns the fingerprints for `agreement`, without a wait. None for one rank."""
        return gathered_fingerprints(self._must_agree())

    def agreement(self, at: Position, of_ranks: Tensor | None) -> None:
        """Raises NumericsError if the ranks' bits differ after the step `at`."""
        self.agreed = compare(list(self._must_agree()), of_ranks, self.agreed, at.global_step)

    def _must_agree(self) -> dict[str, Tensor]:
        return must_agree(self.step.moco, self.step.loss_state.tensors())

    def collapse(self, at: Position, values: Mapping[str, float]) -> None:
        if message := collapse(values):
            self.warn(message, at)

    def bad_images(self, at: Position) -> None:
        """Logs the number of unreadable images whenever it grows.

        The ranks' images are put together, because each rank reads only some of them.
        """
        mine = {self.loader.source.name(index): why for index, why in self.loader.bad.items()}
        bad = {name: why for part in distributed.gather_objects(mine) for name, why in part.items()}
        if len(bad) > self.left_out:
            self.left_out = len(bad)
            name, why = min(bad.items())
            what = f"images that cannot be read, each replaced by the next one: {len(bad)}, such as {name} ({why})"
            self.warn(what, at)

    def warn(self, message: str, at: Position) -> None:
        self.log.warning(message, epoch=at.epoch, global_step=at.global_step)


COLLAPSED = -0.1  # uniformity (t = 2) of features whose mean squared distance is below about 0.05

_SAME_SIZE_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def collapse(values: Mapping[str, float]) -> str | None:
    """Returns a warning if the batch's features are nearly one point.

    The printed `uniformity` decides. None otherwise.
    """
    spread = values.get("uniformity", -1.0)
    if not spread > COLLAPSED:
        return None
    return (
        f"the features are nearly one point (uniformity {spread:.3f}, 0 is collapse): a smaller --moco-m (a larger one"
        " for --loss hard) or --moco-k, or a larger weight of uniformity, spreads them"
    )


def fingerprint(tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns one number for each tensor: int64 [len(tensors)].

    It is the sum of the tensor's bits read as integers; one flipped bit changes it.
    """
    sums = [x.detach().view(_SAME_SIZE_INTEGER[x.element_size()]).sum(dtype=torch.int64) for x in tensors.values()]
    return torch.stack(sums)


def must_agree(model: MoCo, of_loss: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns the tensors that must be equal on all ranks.

    They are the weights, the queue and the loss's own. BatchNorm's statistics are each rank's own.
    """
    queue = {"queue": model.queue, "queue_ptr": model.queue_ptr, "queue_labels": model.queue_labels}
    if model.queue_of_view_0 is not None:
        queue["queue_of_view_0"] = model.queue_of_view_0
    return {**dict(model.named_parameters()), **queue, **(of_loss or {})}


def check_agreement(model: MoCo, last_agreed: int, now: int, of_loss: Mapping[str, Tensor] | None = None) -> int:
    """Returns `now` if all ranks hold the same bits.

    NumericsError on every rank if not. last_agreed: its result of the last call. It reads the weights once and
    exchanges a few hundred numbers. So call it for every printed line, not for every step.
    """
    tensors = must_agree(model, of_loss)
    of_ranks = gathered_fingerprints(tensors)
    return compare(list(tensors), None if of_ranks is None else of_ranks.cpu(), last_agreed, now)


def gathered_fingerprints(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Gathers fingerprints: int64 [ranks, len(tensors)], on the device; None for one rank."""
    return gather_rows(fingerprint(tensors)[None]) if world_size() > 1 else None


def compare(names: list[str], of_ranks: Tensor | None, last_agreed: int, now: int) -> int:
    """Compares fingerprints on the CPU, as `check_agreement` does."""
    if of_ranks is None:
        return now
    usual = of_ranks.mode(dim=0).values
    odd_ranks = (of_ranks != usual).any(dim=1).nonzero().flatten().tolist()
    if not odd_ranks:
        return now
    odd_names = [name for name, odd in zip(names, (of_ranks != usual).any(dim=0).tolist(), strict=True) if odd]
    more = f" and {len(odd_names) - 1} more" if len(odd_names) > 1 else ""
    # with two ranks it is not known which one is right
    who = "the ranks differ" if world_size() == 2 else f"rank {', '.join(map(str, odd_ranks))} differs from the others"
    raise NumericsError(
        f"{who} in {odd_names[0]}{more}, after step {last_agreed} and by step {now}: memory or network is faulty; go on"
        f" with --resume PATH of a checkpoint up to step {last_agreed}, on other hardware if it happens again"
    )


PER_IMAGE = [Purpose.CROP, Purpose.FLIP, Purpose.JITTER, Purpose.GRAYSCALE, Purpose.BLUR, Purpose.SOLARIZE,
             Purpose.ROTATION]  # fmt: skip


def write_repro(
    sampler: Sampler,
    epoch: int,
    step: int,
    global_step: int,
    last_values: Mapping[str, float],
    details: Mapping[str, Any],
    folder: str | Path,
) -> str:
    """Writes a file to study a bad step; returns its name.

    Rank 0 writes it, when a gradient is not finite. step: the 0-based step in `epoch`. last_values: what was last
    printed while all was finite.
    """
    name = f"bad_step_{global_step:08d}.json"
    streams = {
        purpose.name.lower(): [f"{stream_key(sampler.seed, epoch, purpose, view):#018x}" for view in (0, 1)]
        for purpose in PER_IMAGE
    }
    record = {
        "epoch": epoch,
        "step": step,
        "global_step": global_step,
        "seed": sampler.seed,
        "indices": sampler.global_batch(epoch, step).tolist(),  # of all ranks, in their order
        "rank_sizes": sampler.sizes(step),
        "random_streams_of_views": streams,
        "random_stream_of_shuffle": f"{stream_key(sampler.seed, global_step, Purpose.SHUFFLE):#018x}",
        "last_finite": dict(last_values),
        **details,
    }
    if rank() == 0:
        write_json(Path(folder) / name, json_ready(record))
    return name
