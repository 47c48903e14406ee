"""The learning rate of every epoch, against MoCo's printed settings and torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st

from moco.schedules import learning_rate


def test_moco_v1() -> None:
    """0.03, a tenth from epoch 120 and a hundredth from 160 (0-based)."""
    rates = [learning_rate(epoch, 0.03, 200, (120, 160)) for epoch in range(200)]
    expected = [0.03] * 120 + [0.003] * 40 + [0.0003] * 40
    assert rates == pytest.approx(expected, rel=1e-12)


def test_moco_v2() -> None:
    """lr · ½(1 + cos(π · epoch/epochs)): the start, the middle, a third of the way down, and never quite 0."""
    rates = [learning_rate(epoch, 0.03, 200, (120, 160), cos=True) for epoch in range(200)]
    assert rates[0] == 0.03
    assert rates[100] == pytest.approx(0.015, rel=1e-12)
    assert learning_rate(40, 0.03, 120, cos=True) == pytest.approx(0.03 * 0.75, rel=1e-12)
    assert rates[199] == pytest.approx(0.015 * (1 + math.cos(math.pi * 199 / 200)), rel=1e-12)
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0


@given(
    epochs=st.integers(1, 40),
    lr=st.floats(1e-4, 10),
    milestones=st.lists(st.integers(0, 40), max_size=4, unique=True),
    cos=st.booleans(),
)
def test_as_torchs_schedulers(epochs: int, lr: float, milestones: list[int], cos: bool) -> None:
    """`cos` leaves the milestones unused, as in MoCo."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if cos:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    else:
        # torch's scheduler never applies a milestone at epoch 0: the optimiser starts with it
        optimizer.param_groups[0]["lr"] *= 0.1 if 0 in milestones else 1
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [m for m in sorted(milestones) if m > 0])
    for epoch in range(epochs):
        rate = learning_rate(epoch, lr, epochs, milestones, cos)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-9 * lr)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("cos", [True, False])
def test_warm_up_rises_to_the_curve(cos: bool) -> None:
    """(e+1)/(w+1) of what the schedule says: 1/5 ... 4/5 of it in four epochs, then the schedule as without."""
    plain = [learning_rate(epoch, 1.0, 20, (2, 10), cos) for epoch in range(20)]
    warm = [learning_rate(epoch, 1.0, 20, (2, 10), cos, warmup_epochs=4) for epoch in range(20)]
    assert warm[:4] == pytest.approx([rate * (epoch + 1) / 5 for epoch, rate in enumerate(plain[:4])])
    assert warm[4:] == plain[4:]
