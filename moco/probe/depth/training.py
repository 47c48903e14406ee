"""Trains a depth predictor on frozen feature maps; measures and saves it."""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco.data.augment import Augment
from moco.data.depth_crops import DepthLoader, augmented_pairs
from moco.encoders import classifier_name
from moco.encoders.files import EncoderFile
from moco.errors import InputError, NumericsError
from moco.metrics.depth import depth_errors
from moco.probe.depth.options import DepthOptions
from moco.probe.depth.predictor import DepthPredictor, known_mse
from moco.probe.depth.saved import BEST, LAST
from moco.run import checkpoint
from moco.run.log import RunLog
from moco.run.meter import Clock, Meter
from moco.run.options import as_dict
from moco.run.provenance import git_state
from moco.schedules import learning_rate
from moco.timing import timeline, waited_for


@dataclass(frozen=True)
class Best:
    """Holds the epoch with the least validation error, from 1; 0: none."""

    mse: float = math.inf
    epoch: int = 0


@dataclass
class DepthProbe:
    """Holds networks and loaders.

    maps: images [N, 3, S, S] -> feature maps, frozen. augment: of training; plain: of evaluation.
    """

    options: DepthOptions
    device: torch.device
    encoder: nn.Module
    maps: nn.Module
    predictor: DepthPredictor
    train: DepthLoader
    val: DepthLoader
    augment: Augment
    plain: Augment
    best: Best = field(default_factory=Best)

    def __post_init__(self) -> None:
        o = self.options
        betas = (o.adam_betas[0], o.adam_betas[1])
        self.optimizer = torch.optim.Adam(self.predictor.parameters(), lr=o.lr, betas=betas)

    def one_epoch(self, epoch: int, log: RunLog) -> None:
        """Trains for one epoch.

        It waits for the device only every `print_freq` steps. NumericsError if the loss or a weight is not finite.
        """
        options = self.options
        steps = len(self.train)
        lr = learning_rate(epoch, options.lr, options.epochs, options.schedule, drop=options.lr_drop)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.predictor.train()
        timeline.start(self.device)
        clock = Clock()
        since_print = Meter()
        of_epoch = Meter()
        with contextlib.closing(self.train.epoch(epoch)) as batches:
            for step, batch in enumerate(waited_for(batches), 1):
                with torch.no_grad():
                    images, truth = augmented_pairs(batch, self.augment, epoch)
                    maps = self.maps(images)
                loss = known_mse(self.predictor(maps), truth)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
                for meter in (since_print, of_epoch):
                    meter.add({"loss": loss.detach()}, len(truth))
                clock.step(len(truth))
                at = dict(epoch=epoch, step=step, steps=steps, epochs=options.epochs)
                if step % options.print_freq == 0 or step == steps:
                    timing = clock.lap(self.device, (options.epochs - epoch) * steps - step)
                    log.train({**since_print.read(), "lr": lr}, timing, **at, global_step=epoch * steps + step)
                else:
                    log.advance(**at)
        means = of_epoch.read()
        log.epoch(means, epoch=epoch, global_step=(epoch + 1) * steps)
        if not math.isfinite(means["loss"]) or not all(p.isfinite().all() for p in self.predictor.parameters()):
            raise NumericsError(f"loss or weights are not finite after epoch {epoch + 1}: use a smaller --lr")

    @torch.no_grad()
    def predictions(self) -> tuple[Tensor, Tensor]:
        """Returns (predicted, true depth) of the validation images, on the CPU.

        fp32 [n, S, S] in metres.
        """
        self.predictor.eval()
        found = []
        with contextlib.closing(self.val.epoch(0)) as batches:
            for batch in batches:
                images, truth = augmented_pairs(batch, self.plain, 0)
                found.append((self.predictor(self.maps(images)).cpu(), truth.cpu()))
        predicted, true = zip(*found, strict=True)
        return torch.cat(predicted), torch.cat(true)

    def errors(self) -> dict[str, float]:
        """Returns `depth_errors` on the validation images."""
        return depth_errors(*self.predictions())

    def constant_errors(self) -> dict[str, float]:
        """Returns the errors of a constant: the training images' mean depth.

        Without augmentation.
        """
        loader = DepthLoader(
            self.train.pairs, self.train.sampler, size=self.train.size, eval_crop=self.val.eval_crop,
            workers=self.options.workers, skip_bad_images=self.options.skip_bad_images,
        )  # fmt: skip
        total = 0.0
        count = 0
        with contextlib.closing(loader.epoch(0)) as batches:
            for batch in batches:
                truth = augmented_pairs(batch, self.plain, 0)[1]
                total += truth.sum(dtype=torch.float64).item()
                count += int((truth > 0).sum())
        if not count:
            raise InputError("no pixel of the training images has a depth: check the depth files")
        truth = self.predictions()[1]
        return depth_errors(torch.full_like(truth, total / count), truth)

    def after_epoch(self, epoch: int, log: RunLog) -> None:
        """Measures and saves after the 0-based `epoch`."""
        errors = self.errors()
        log.eval(errors, epoch=epoch, global_step=(epoch + 1) * len(self.train))
        names = [LAST]
        if errors["depth_mse"] < self.best.mse:
            self.best = Best(errors["depth_mse"], epoch + 1)
            names.append(BEST)
        log.sync()
        for name in names:
            checkpoint.save(Path(self.options.output_dir) / name, self._state(epoch + 1))

    def _state(self, epochs_done: int) -> dict[str, Any]:
        """Returns the checkpoint's contents.

        MoCo's layout for the encoder, without its last layer; the predictor beside it.
        """
        head = classifier_name(self.encoder) + "."
        weights = {name: value for name, value in self.encoder.state_dict().items() if not name.startswith(head)}
        return {
            "epoch": epochs_done,
            "arch": self.options.arch,
            "state_dict": {f"module.{name}": value for name, value in weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "moco_depth": {
                "predictor": dict(self.predictor.state_dict()),
                "best": asdict(self.best),
                "options": as_dict(self.options),
                "git": git_state(),
            },
        }

    def restore(self, file: EncoderFile) -> int:
        """Restores predictor, optimiser and best epoch; returns the epochs done.

        InputError if they do not fit.
        """
        ours = file.rest["moco_depth"]
        try:
            self.predictor.load_state_dict(ours["predictor"])
            self.optimizer.load_state_dict(file.rest["optimizer"])
            self.best = Best(**ours["best"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file.path} does not fit the predictor of its options: use another copy") from error
        return file.epoch or 0
