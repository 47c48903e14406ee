"""The learning rate of every epoch, against MoCo's printed settings and torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st

from moco.schedules import key_momentum, learning_rate, learning_rate_by_step


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


# -- by step -----------------------------------------------------------------------------------------------------------

EPOCHS, WARMUP, STEPS = 7, 2, 5
POSITIONS = [epoch + step / STEPS for epoch in range(EPOCHS) for step in range(STEPS)]


def test_the_rate_by_step_is_moco_v3s() -> None:
    """A straight line from 0, then a half cosine over what the warm-up leaves: read off at its ends and its middle."""
    rates = [learning_rate_by_step(at, 0.6, EPOCHS, (), True, WARMUP) for at in POSITIONS]
    assert rates[:11] == pytest.approx([0.06 * step for step in range(11)])
    assert learning_rate_by_step(4.5, 0.6, EPOCHS, (), True, WARMUP) == pytest.approx(0.3)
    assert learning_rate_by_step(6.999999, 0.6, EPOCHS, (), True, WARMUP) == pytest.approx(0, abs=1e-9)
    expected = [0.6 * 0.5 * (1 + math.cos(math.pi * (at - 2) / 5)) for at in POSITIONS[10:]]
    assert rates[10:] == pytest.approx(expected) and rates[10:] == sorted(rates[10:], reverse=True)


def test_the_rate_by_step_keeps_the_milestones() -> None:
    rates = [learning_rate_by_step(at, 1.0, EPOCHS, (3, 5), False, WARMUP) for at in POSITIONS]
    assert rates[:10] == pytest.approx([step / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.01] * 10)


def test_a_warm_up_longer_than_the_run() -> None:
    assert learning_rate_by_step(6.5, 1.0, EPOCHS, (), True, 10) == pytest.approx(0.65)


def test_key_momentum_rises_to_1_as_mocov3s() -> None:
    """adjust_moco_momentum of facebookresearch/moco-v3, with the epoch a fraction."""
    values = [key_momentum(0.99, at, EPOCHS, cos=True) for at in POSITIONS]
    expected = [1 - 0.5 * (1 + math.cos(math.pi * at / EPOCHS)) * (1 - 0.99) for at in POSITIONS]
    assert values == pytest.approx(expected, abs=1e-12)
    assert values[0] == pytest.approx(0.99) and key_momentum(0.99, EPOCHS, EPOCHS, cos=True) == 1
    assert key_momentum(0.99, EPOCHS / 2, EPOCHS, cos=True) == pytest.approx(0.995)


def test_key_momentum_between_two_values_is_solo_learns() -> None:
    """final - (final - base)·(cos(π·t) + 1)/2, and level outside its points."""
    for at in POSITIONS:
        expected = 0.999 - (0.999 - 0.99) * (math.cos(math.pi * at / EPOCHS) + 1) / 2
        assert key_momentum(f"0:0.99,{EPOCHS}:0.999", at, EPOCHS, cos=True) == pytest.approx(expected, abs=1e-12)
    assert [key_momentum("2:0.5,4:0.9", at, 9, cos=True) for at in (0, 1.9, 4, 8.5)] == [0.5, 0.5, 0.9, 0.9]
    assert key_momentum("2:0.5,4:0.9,5:0.5", 3, 9, cos=True) == pytest.approx(0.7)


def test_key_momentum_without_a_cosine_is_of_the_epoch() -> None:
    assert {key_momentum(0.999, at, EPOCHS) for at in POSITIONS} == {0.999}
    values = [key_momentum("0:0.9,4:0.98", at, EPOCHS) for at in (0, 0.8, 2.2, 5)]
    assert values == pytest.approx([0.9, 0.9, 0.94, 0.98])
