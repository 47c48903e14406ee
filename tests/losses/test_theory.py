"""Shares of the gradient and their limits in temperature; the contrastive loss of more and more negatives."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moco.errors import InputError
from moco.losses import align_loss, contrastive_loss
from moco.losses.theory import contrastive_limit, gradient_shares
from moco.metrics import uniformity_bounds


def unit_rows(n: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


# -- shares ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
def test_shares_are_those_of_the_gradient(temperature: float) -> None:
    """∂L/∂s_ij of Eq 1, over that of the positive: by autograd, from the loss written out."""
    similarities = (unit_rows(3, 5, 0) @ unit_rows(8, 5, 1).T).requires_grad_()
    positive = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
    logits = torch.cat([positive[:, None], similarities], dim=1) / temperature
    loss = F.cross_entropy(logits, torch.zeros(3, dtype=torch.long), reduction="sum")
    of_negatives, of_positive = torch.autograd.grad(loss, (similarities, positive))
    expected = of_negatives / of_positive.abs()[:, None]
    torch.testing.assert_close(gradient_shares(similarities.detach(), temperature), expected, rtol=1e-9, atol=1e-12)


def test_two_negatives_in_closed_form() -> None:
    """1 / (1 + e^{-(s_1 - s_2)/τ})."""
    shares = gradient_shares(torch.tensor([0.5, 0.2], dtype=torch.float64), 0.1)
    assert shares[0].item() == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-12)
    assert shares.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_small_temperature_leaves_the_nearest_alone() -> None:
    similarities = torch.tensor([[0.1, 0.9, 0.89], [-0.5, -0.2, -0.9]])
    for temperature in (1e-3, 1e-8, 1e-40):
        expected = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
        torch.testing.assert_close(gradient_shares(similarities, temperature), expected, atol=1e-4, rtol=0)
    tie = gradient_shares(torch.tensor([0.7, 0.1, 0.7]), 1e-6)
    torch.testing.assert_close(tie, torch.tensor([0.5, 0.0, 0.5]))


def test_a_large_temperature_treats_all_alike() -> None:
    similarities = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(gradient_shares(similarities, 1e9), torch.full((9,), 1 / 9, dtype=torch.float64))
    spread = [float(shares.max() - shares.min()) for shares in (gradient_shares(similarities, t) for t in (0.1, 1, 10))]
    assert spread[0] > spread[1] > spread[2] > 0


def test_entropy_of_the_shares_grows_with_temperature() -> None:
    """Wang & Liu, Theorem (supplement): the larger τ, the more uniform."""
    similarities = unit_rows(1, 4, 2) @ unit_rows(50, 4, 3).T
    entropies = []
    for temperature in (0.03, 0.07, 0.2, 0.5, 1.0, 5.0):
        shares = gradient_shares(similarities, temperature)
        entropies.append(float(-(shares * shares.clamp_min(1e-300).log()).sum()))
    assert entropies == sorted(entropies) and entropies[-1] < math.log(50)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature(bad: float) -> None:
    with pytest.raises(InputError, match="the temperature must be a positive number"):
        gradient_shares(torch.zeros(3), bad)


# -- many negatives ----------------------------------------------------------------------------------------------------


def test_the_loss_of_many_negatives_nears_its_limit() -> None:
    """Ten times the negatives bring it √10 times nearer, as a root mean square over draws; with the whole population
    many times over only the positive in the denominator is left of the difference."""
    q, k, population = unit_rows(16, 3, 4), unit_rows(16, 3, 5), unit_rows(500, 3, 6).T
    temperature = 0.4
    limit = contrastive_limit(q, k, population, temperature)
    generator = torch.Generator().manual_seed(7)
    errors = []
    for count in (10, 100, 1000):
        draws = [population[:, torch.randint(500, (count,), generator=generator)] for _ in range(64)]
        values = torch.stack([contrastive_loss(q, k, queue, temperature) for queue in draws]) - math.log(count)
        errors.append(float((values - limit).square().mean().sqrt()))
    assert all(later < earlier / 2 for earlier, later in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.02
    whole = contrastive_loss(q, k, population.repeat(1, 100), temperature) - math.log(50000)
    assert whole.item() == pytest.approx(limit.item(), abs=1e-3)


def test_the_limit_is_alignment_plus_entropy() -> None:
    """(L_align - 2)/(2τ), and against points spread evenly on a circle the other term is log ₀F₁(; 1; 1/(4τ²))."""
    q, k, temperature = unit_rows(5, 2, 8), unit_rows(5, 2, 9), 0.5
    angles = torch.arange(1000, dtype=torch.float64) * (2 * math.pi / 1000)
    circle = torch.stack([angles.cos(), angles.sin()])
    lowest = uniformity_bounds(2, 1 / (2 * temperature))[0] + 1 / temperature  # without its -2t
    expected = (align_loss(q, k).item() - 2) / (2 * temperature) + lowest
    assert contrastive_limit(q, k, circle, temperature).item() == pytest.approx(expected, abs=1e-10)


def test_no_population_has_a_lower_limit_than_the_uniform_one() -> None:
    temperature, lowest = 0.5, uniformity_bounds(3, 1.0)[0] + 2.0
    for spread in (0.1, 0.5, 2.0, 10.0):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(400, 3, generator=generator, dtype=torch.float64) * spread + torch.tensor([1.0, 0, 0])
        x = F.normalize(x, dim=1)
        assert contrastive_limit(x, x, x.T, temperature).item() + 1 / temperature > lowest
