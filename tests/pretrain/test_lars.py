"""LARS against its formula in float64, its exceptions, and steps that are left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moco.pretrain.lars import LARS

LR, MOMENTUM, DECAY, TRUST = 0.7, 0.9, 0.03, 0.002


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 3, 2, 2), (5, 6), (5,), ()]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(50 + step)
    return [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights()]


def optimizer_of(parameters: list[nn.Parameter]) -> LARS:
    return LARS(parameters, LR, momentum=MOMENTUM, weight_decay=DECAY, trust=TRUST)


def train(steps: range, **more: Any) -> list[nn.Parameter]:
    parameters = weights()
    optimizer = optimizer_of(parameters)
    for step in steps:
        for weight, gradient in zip(parameters, gradients(step), strict=True):
            weight.grad = gradient
        optimizer.found_inf = more.get("found_inf")
        optimizer.step()
    return parameters


def test_is_the_formula() -> None:
    """Norms over all entries; no decay and no adaptation below two dimensions; momentum after the scaling."""
    expected = [w.detach().clone() for w in weights()]
    momenta = [torch.zeros_like(w) for w in expected]
    for step in range(4):
        for w, mu, g in zip(expected, momenta, gradients(step), strict=True):
            if w.dim() > 1:
                d = g + DECAY * w
                g = d * TRUST * (w * w).sum().sqrt() / (d * d).sum().sqrt()
            mu.copy_(MOMENTUM * mu + g)
            w.sub_(LR * mu)
    found = train(range(4))
    for w, e in zip(found, expected, strict=True):
        torch.testing.assert_close(w.detach(), e, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_a_norm_of_zero_is_not_divided_by(zero: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 3) if zero == "weight" else torch.ones(2, 3))
    weight.grad = torch.zeros(2, 3) if zero == "gradient" else torch.ones(2, 3)
    LARS([weight], LR, momentum=MOMENTUM).step()
    assert weight.detach().equal(torch.full((2, 3), -LR) if zero == "weight" else torch.ones(2, 3))


def test_parameters_without_a_gradient_stay() -> None:
    first, second = weights()[:2]
    before = second.detach().clone()
    optimizer = optimizer_of([first, second])
    first.grad = torch.ones_like(first)
    optimizer.step()
    assert second.detach().equal(before) and second not in optimizer.state


@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_a_step_that_is_left_out_changes_no_bit(first: bool) -> None:
    parameters = weights()
    optimizer = optimizer_of(parameters)
    for step in range(0 if first else 2):
        for weight, gradient in zip(parameters, gradients(step), strict=True):
            weight.grad = gradient
        optimizer.step()
    before = [w.detach().clone() for w in parameters]
    momenta = [optimizer.state[w]["mu"].clone() if optimizer.state[w] else torch.zeros_like(w) for w in parameters]
    for bad in (float("nan"), float("inf")):
        for weight in parameters:
            weight.grad = torch.full_like(weight, bad)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
    assert all(w.detach().equal(old) for w, old in zip(parameters, before, strict=True))
    assert all(optimizer.state[w]["mu"].equal(mu) for w, mu in zip(parameters, momenta, strict=True))


def test_a_good_step_is_the_same_bits_with_and_without_a_guard() -> None:
    for a, b in zip(train(range(3)), train(range(3), found_inf=torch.zeros(())), strict=True):
        assert a.detach().equal(b.detach())
