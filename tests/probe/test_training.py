"""Many classifiers at once against each of them alone in float64, and what their accuracies count."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.data.sampler import Sampler
from moco.errors import NumericsError
from moco.probe.__main__ import protocol_of
from moco.probe.options import LinclsOptions, parse_lincls
from moco.probe.training import Cached, Classifiers, Probe, accuracies, make_optimizer
from moco.run.log import RunLog

CPU = torch.device("cpu")


def linears(count: int, width: int = 5, classes: int = 3) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(width, classes).double() for _ in range(count)]


def data(n: int = 22, width: int = 5) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % 3
    noise = torch.randn(n, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return noise + 2 * torch.eye(width, dtype=torch.float64)[y], y


def options(*words: str) -> LinclsOptions:
    o = parse_lincls(["--dataset", "digits", "-b", "8", "--epochs", "3", "--schedule", "2", "--seed", "4", *words])
    return replace(o, image_size=8)


def train(o: LinclsOptions, classifiers: Classifiers, folder: Path) -> Probe:
    x, y = data()
    optimizer, rates = make_optimizer(o, protocol_of(o).settings(), classifiers, None)
    sampler = Sampler(len(x), o.batch_size, 4, drop_last=False)
    with RunLog(folder, rank=0, tensorboard=False) as log:
        probe = Probe(o, CPU, nn.Identity(), classifiers, None, optimizer, rates, Cached(x, y, sampler), log)
        for epoch in range(o.epochs):
            probe.one_epoch(epoch)
    return probe


def alone(linear: nn.Linear, lr: float, decay: float, momentum: float, drop: float) -> tuple[Tensor, Tensor]:
    """Gradient descent with momentum, written out, on the mean cross entropy of batches of 8, 8 and 6."""
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    x, y = data()
    sampler = Sampler(22, 8, 4, drop_last=False)
    for epoch in range(3):
        rate = lr * 8 / 256 * (drop if epoch >= 2 else 1)
        for step in range(sampler.steps):
            rows = torch.from_numpy(sampler.batch(epoch, step))
            residual = ((x[rows] @ weight.T + bias).softmax(1) - F.one_hot(y[rows], 3)) / len(rows)
            for p, v, g in ((weight, speed[0], residual.T @ x[rows]), (bias, speed[1], residual.sum(0))):
                v.mul_(momentum).add_(g + decay * p)
                p.sub_(rate * v)
    return weight, bias


def test_each_classifier_trains_as_if_it_were_alone(tmp_path: Path) -> None:
    o = options("--sweep", "--sweep-lrs", "1", "30", "--sweep-wds", "0", "0.1", "--lr-drop", "0.2")
    start, trained = linears(1)[0], Classifiers([linears(1)[0] for _ in range(4)])
    assert protocol_of(o).settings() == [(1, 0), (1, 0.1), (30, 0), (30, 0.1)]
    train(o, trained, tmp_path)
    for linear, (lr, decay) in zip(trained.linears, protocol_of(o).settings(), strict=True):
        weight, bias = alone(start, lr, decay, momentum=0.9, drop=0.2)
        torch.testing.assert_close(linear.weight.detach(), weight)
        torch.testing.assert_close(linear.bias.detach(), bias)


def test_adam(tmp_path: Path) -> None:
    """The first step of Adam is the learning rate in the direction of the gradient's sign."""
    o = replace(options("--optimizer", "adam", "--lr", "0.032"), epochs=1, batch_size=22)
    trained, before = Classifiers(linears(1)), linears(1)[0].weight.detach()
    train(o, trained, tmp_path)
    steps = (trained[0].weight.detach() - before).abs()
    torch.testing.assert_close(steps, torch.full_like(steps, 0.032 * 22 / 256), rtol=1e-4, atol=0)


def test_logits_are_those_of_each() -> None:
    many, (x, _) = Classifiers(linears(3)), data()
    assert many(x).shape == (22, 3, 3)
    for j, linear in enumerate(many.linears):
        torch.testing.assert_close(many(x)[:, j], linear(x))
    torch.testing.assert_close(Classifiers(linears(1))(x)[:, 0], linears(1)[0](x))


def test_accuracies_and_weights_that_are_not_finite() -> None:
    many, (x, y) = Classifiers(linears(2, classes=3)), data()
    with torch.no_grad():
        many[0].weight.copy_(torch.eye(3, 5))
        many[0].bias.zero_()
        many[1].weight.fill_(math.nan)
    top1, top5 = accuracies(many, x, y)
    right = sum(int(row[:3].argmax()) == int(label) for row, label in zip(x, y, strict=True))
    assert top1.tolist() == pytest.approx([100 * right / 22, 0])
    assert top5.tolist() == [100, 0]  # of three classes
    assert many.finite().tolist() == [True, False]


def test_one_that_diverges_does_not_touch_the_others(tmp_path: Path) -> None:
    def after(lrs: list[Any]) -> Classifiers:
        o = replace(options("--sweep", "--sweep-wds", "0"), sweep_lrs=lrs, momentum=1e30)
        trained = Classifiers([linears(1)[0] for _ in lrs])
        train(o, trained, tmp_path / str(len(lrs)))
        return trained

    both = after([1e-300, 1e290])
    assert both.finite().tolist() == [True, False]
    torch.testing.assert_close(both[0].weight, after([1e-300])[0].weight)
    with pytest.raises(NumericsError, match="smaller --lr"):
        after([1e290])
