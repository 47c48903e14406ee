"""The losses over neighbours against loops in float64, and the direction in which each term moves features."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moco.errors import InputError
from moco.losses.neighbours import NEIGHBOUR_WEIGHTS, NeighbourLoss

N, C = 6, 4


def features(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    f, g = (torch.randn(n, C, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    return f, g


def unit(*raw: Tensor) -> list[Tensor]:
    return [F.normalize(x, dim=1) for x in raw]


def contrastive(f: Tensor, g: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with a written-out target matrix."""
    n, total = len(f), f.new_zeros(())
    for i in range(n):
        neighbours = [j for j in (i - 1, i + 1) if 0 <= j < n]
        scores = torch.stack([f[i] @ g[j] / temperature for j in range(n)])
        for j in neighbours:
            total = total - (scores[j] - scores.exp().sum().log()) / len(neighbours)
    return total / n


def alignment(f: Tensor, g: Tensor, alpha: float) -> Tensor:
    pairs = [(i, j) for i in range(len(f)) for j in range(len(g)) if abs(i - j) == 1]
    return torch.stack([(f[i] - g[j]).norm() ** alpha for i, j in pairs]).mean()


def uniformity(x: Tensor, t: float) -> Tensor:
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return torch.stack([(-t * (x[i] - x[j]).norm() ** 2).exp() for i, j in pairs]).mean().log()


@pytest.mark.parametrize("n", [2, 3, N])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.9, 0.1)])
def test_value_and_gradient_are_those_of_the_loops(n: int, alpha: float, weights: tuple[float, float, float]) -> None:
    raw = features(n)
    loss = NeighbourLoss(weights[0], 0.2, weights[1], alpha, weights[2], 3.0)
    found = loss(*unit(*raw)).loss
    f, g = unit(*raw)
    terms = (contrastive(f, g, 0.2), alignment(f, g, alpha), uniformity(f, 3.0) + uniformity(g, 3.0))
    expected = sum((w * term for w, term in zip(weights, terms, strict=True)), f.new_zeros(()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(x, raw, allow_unused=True) for x in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def neighbours_similarity(f: Tensor, g: Tensor) -> float:
    return float(((f[:-1] * g[1:]).sum() + (f[1:] * g[:-1]).sum()).detach() / (2 * (len(f) - 1)))


@pytest.mark.parametrize(
    ("weights", "measure", "sign"),
    [
        ((1.0, 0.0, 0.0), neighbours_similarity, 1),
        ((1.0, 0.0, 0.0), lambda f, g: float((f * g).sum().detach()), -1),  # a sentence is no positive of itself
        ((0.0, 1.0, 0.0), neighbours_similarity, 1),
        ((0.0, 0.0, 1.0), lambda f, g: float(((f @ f.T).sum() + (g @ g.T).sum()).detach()), -1),
    ],
)
def test_a_step_down_moves_features_the_right_way(weights: tuple[float, ...], measure: object, sign: int) -> None:
    assert callable(measure)
    raw = features()
    before = measure(*unit(*raw))
    NeighbourLoss(weights[0], 0.2, weights[1], 2.0, weights[2], 2.0)(*unit(*raw)).loss.backward()
    after = measure(*unit(*(x - 0.01 * x.grad for x in raw if x.grad is not None)))
    assert sign * (after - before) > 1e-5


def test_identical_features_have_known_values() -> None:
    """Collapsed: the contrastive loss is log N, alignment 0, uniformity 0."""
    x = unit(torch.ones(N, C, dtype=torch.float64))[0]
    out = NeighbourLoss(1.0, 0.1, 1.0, 1.0, 1.0, 2.0)(x, x).logs
    assert float(out["loss_contrastive"]) == pytest.approx(math.log(N))
    assert float(out["loss_align"]) == pytest.approx(0, abs=1e-7) and float(out["loss_uniform"]) == pytest.approx(0)


@pytest.mark.parametrize("arguments", [(0.0, 0.1, 0.0), (-1.0, 0.1, 1.0), (1.0, 0.0, 0.0), (1.0, math.inf, 0.0)])
def test_settings_without_a_meaning_are_refused(arguments: tuple[float, float, float]) -> None:
    with pytest.raises(InputError):
        NeighbourLoss(arguments[0], arguments[1], arguments[2])


def test_presets_are_those_of_the_best_published_encoders() -> None:
    assert NEIGHBOUR_WEIGHTS == {"infonce": (1, 0, 0), "align-uniform": (0, 0.9, 0.1)}
    assert NeighbourLoss().temperature == 0.075 and NeighbourLoss().unif_t == 5
