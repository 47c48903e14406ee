"""Trains linear classifiers: one, many at once, or one with its encoder.

Many classifiers are one matrix product. All use the same batches; each has its own learning rate and weight decay. The
gradient of the sum of their losses gives each classifier the gradient of its own loss.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco import distributed, metrics
from moco.data.augment import Augment
from moco.data.loader import Batch, Loader
from moco.data.sampler import Sampler
from moco.errors import NumericsError
from moco.probe.options import LinclsOptions
from moco.run.log import RunLog
from moco.run.meter import Clock, Meter
from moco.schedules import learning_rate
from moco.timing import timeline, waited_for


class Classifiers(nn.Module):
    """Applies J linear classifiers of the same shape.

    Features [N, d] -> logits [N, J, classes].
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    def __len__(self) -> int:
        return len(self.linears)

    def __getitem__(self, number: int) -> nn.Linear:
        linear = self.linears[number]
        assert isinstance(linear, nn.Linear)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        if len(self) == 1:
            return self[0](x)[:, None]
        weight = torch.cat([self[j].weight for j in range(len(self))])
        bias = None if self[0].bias is None else torch.cat([self[j].bias for j in range(len(self))])
        return F.linear(x, weight, bias).view(len(x), len(self), -1)

    def finite(self) -> Tensor:
        """Returns True for each classifier with finite weights: bool [J]."""
        return torch.stack([torch.stack([p.isfinite().all() for p in one.parameters()]).all() for one in self.linears])


class Stream(Protocol):
    """Yields the training batches of an epoch."""

    @property
    def sampler(self) -> Sampler: ...

    def epoch(self, epoch: int) -> Generator[Any, None, None]: ...

    def inputs(self, batch: Any, epoch: int) -> tuple[Tensor, Tensor]:
        """Returns (input of the trained model, labels) of a batch.

        Both are this rank's share.
        """


@dataclass
class Crops:
    """Yields augmented crops.

    `inputs` returns their features by the frozen `network`, if there is one.
    """

    loader: Loader
    augment: Augment
    network: nn.Module | None

    @property
    def sampler(self) -> Sampler:
        return self.loader.sampler

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        return self.loader.epoch(epoch)

    def inputs(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            images = self.augment(batch.crops[:, 0], batch.index, epoch)
            return (self.network(images) if self.network else images), batch.labels


@dataclass
class Cached:
    """Yields features [n, d] that were computed once, without augmentation."""

    features: Tensor
    labels: Tensor
    sampler: Sampler

    def epoch(self, epoch: int) -> Generator[Tensor, None, None]:
        for step in range(self.sampler.steps):
            rows = torch.from_numpy(self.sampler.batch(epoch, step))
            yield distributed.copy_without_waiting(rows, self.features.device)

    def inputs(self, batch: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        return self.features[batch], self.labels[batch]


@torch.no_grad()
def accuracies(classifiers: Classifiers, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Measures the accuracy of each classifier on features [n, d].

    Returns (top-1, top-5) in percent, each fp64 [J]. They are 0 for a classifier whose weights are not finite.
    """
    right = torch.zeros((2, len(classifiers)), dtype=torch.float64, device=features.device)
    for x, y in zip(features.split(4096), labels.split(4096), strict=True):
        logits = classifiers(x)
        right += torch.stack([metrics.topk_correct(logits[:, j], y) for j in range(len(classifiers))], dim=1)
    top1, top5 = 100 * right / len(labels) * classifiers.finite()
    return top1, top5


def check_unchanged(before: dict[str, Tensor], now: dict[str, Tensor]) -> None:
    """Raises NumericsError if the frozen encoder has changed.

    It is MoCo's sanity check.
    """
    changed = [name for name, value in before.items() if not torch.equal(value, now[name])]
    if changed:
        raise NumericsError(f"{changed[0]} changed although the trunk is frozen: please report this fault")


def make_optimizer(
    options: LinclsOptions, settings: Sequence[tuple[float, float]], classifiers: Classifiers, trunk: nn.Module | None
) -> tuple[torch.optim.Optimizer, list[float]]:
    """Returns (optimiser, learning rates of its groups).

    There is a group for each classifier, and one for `trunk` if it is trained. settings: (learning rate per 256 images,
    weight decay) of each classifier.
    """
    scale = options.batch_size / 256
    rates = [scale * lr for lr, _ in settings]
    groups = [
        {"params": list(linear.parameters()), "lr": rate, "weight_decay": decay}
        for linear, rate, (_, decay) in zip(classifiers.linears, rates, settings, strict=True)
    ]
    if trunk is not None:
        rates.append(scale * options.trunk_lr)
        groups.append({"params": list(trunk.parameters()), "lr": rates[-1], "weight_decay": options.weight_decay})
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, betas=(options.adam_betas[0], options.adam_betas[1])), rates
    return torch.optim.SGD(groups, rates[0], momentum=options.momentum), rates


@dataclass
class Probe:
    """Trains classifiers.

    trunk None: only the classifiers are trained, on the features of the stream.
    """

    options: LinclsOptions
    device: torch.device
    encoder: nn.Module
    classifiers: Classifiers
    trunk: nn.Module | None
    optimizer: torch.optim.Optimizer
    rates: list[float]
    stream: Stream
    log: RunLog
    chosen: int = 0

    def __post_init__(self) -> None:
        model = self.classifiers if self.trunk is None else nn.Sequential(self.trunk, self.classifiers)
        self.parallel = distributed.data_parallel(model, self.device)

    def percent(self, validation: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Returns (top-1, top-5) of the chosen classifier, in percent.

        validation: features [n, d] and labels [n].
        """
        top1, top5 = accuracies(self.classifiers, *validation)
        return float(top1[self.chosen]), float(top5[self.chosen])

    def one_epoch(self, epoch: int) -> None:
        """Trains one epoch; logs the classifier that was the best so far.

        It waits for the device only every `print_freq` steps. Ranks may have uneven parts of a batch, or none.
        """
        options = self.options
        steps = self.stream.sampler.steps
        world = distributed.world_size()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = learning_rate(epoch, rate, options.epochs, options.schedule, drop=options.lr_drop)
        lr = self.optimizer.param_groups[self.chosen]["lr"]
        if self.trunk is not None:
            self.trunk.train()
        timeline.start(self.device)
        clock = Clock()
        since_print = Meter()
        of_epoch = Meter()
        with contextlib.closing(self.stream.epoch(epoch)) as batches:
            for step, batch in enumerate(waited_for(batches)):
                x, labels = self.stream.inputs(batch, epoch)
                n = len(labels)
                total = sum(self.stream.sampler.sizes(step))
                logits = self.parallel(x)
                each = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(len(self.classifiers)),
                                       reduction="none").view(n, -1)  # fmt: skip
                self.optimizer.zero_grad(set_to_none=True)
                # DDP takes the mean over ranks: this is the mean over samples
                (each.sum() * (world / total)).backward()
                self.optimizer.step()
                acc1, acc5 = metrics.topk_accuracy(logits[:, self.chosen].detach(), labels)
                loss = each[:, self.chosen].detach().sum() / max(1, n)
                for meter in (since_print, of_epoch):
                    meter.add({"loss": loss, "acc1": acc1, "acc5": acc5}, n)
                clock.step(total)
                at = dict(epoch=epoch, step=step + 1, steps=steps, epochs=options.epochs)
                if (step + 1) % options.print_freq == 0 or step + 1 == steps:
                    timing = clock.lap(self.device, (options.epochs - epoch) * steps - step - 1)
                    self.log.train({**since_print.read(), "lr": lr}, timing, **at, global_step=epoch * steps + step + 1)
                else:
                    self.log.advance(**at)
        means = of_epoch.read()
        self.log.epoch(means, epoch=epoch, global_step=(epoch + 1) * steps)
        if self.trunk is not None:
            self.trunk.eval()
        alone = len(self.classifiers) == 1
        if not self.classifiers.finite().any() or (alone and not math.isfinite(means["loss"])):
            raise NumericsError(f"loss or weights are not finite after epoch {epoch + 1}: use a smaller --lr")
