"""The few-label figure: its classifier against scikit-learn's, its draws as a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from moco.errors import InputError
from moco.probe.logistic import few_label_accuracy, logistic_regression

cross_entropy = F.cross_entropy


def clusters(n: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around the corners of a triangle in 6 dimensions; one dimension is constant."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randn(n, 6, generator=generator) * spread + 3 * torch.eye(6)[y]
    x[:, 5] = 7
    return x, y


@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_it_is_the_optimum_that_scikit_learn_finds(penalty: float) -> None:
    x, y = clusters(30, seed=0)
    weight, bias = logistic_regression(x.double(), y, 3, penalty)
    oracle = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10000).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(weight.numpy(), oracle.coef_, atol=1e-4)
    np.testing.assert_allclose(bias - bias.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-3)


def test_gradient_is_zero_at_the_optimum() -> None:
    x, y = clusters(30, seed=0)
    weight, bias = logistic_regression(x.double(), y, 3)
    p = (x.double() @ weight.T + bias).softmax(1) - torch.eye(3, dtype=torch.float64)[y]
    torch.testing.assert_close(p.T @ x.double() + weight, torch.zeros_like(weight), atol=1e-4, rtol=0)


def test_the_start_does_not_change_the_solution() -> None:
    x, y = clusters(60, seed=0, spread=2)
    cold = logistic_regression(x.double(), y, 3)
    start = (torch.full((3, 6), 0.5, dtype=torch.float64), torch.tensor([1.0, -1.0, 3.0], dtype=torch.float64))
    warm = logistic_regression(x.double(), y, 3, start=start)
    torch.testing.assert_close(warm[0], cold[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(warm[1] - warm[1].mean(), cold[1] - cold[1].mean(), atol=1e-2, rtol=0)


def test_correlated_features_of_unequal_scale_need_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of a young encoder are of this kind."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(20, 20, generator=generator, dtype=torch.float64) * torch.logspace(0, -4, 20).double()[:, None]
    y = torch.arange(600) % 3
    x = (
        torch.randn(600, 20, generator=generator, dtype=torch.float64) + torch.eye(20, dtype=torch.float64)[y]
    ) @ mixing
    calls: list[int] = []
    monkeypatch.setattr(F, "cross_entropy", lambda *a, **k: (calls.append(1), cross_entropy(*a, **k))[1])
    weight, _ = logistic_regression(x, y, 3, penalty=0.1)
    oracle = LogisticRegression(C=10, tol=1e-10, max_iter=100000, solver="newton-cg").fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weight.numpy(), oracle.coef_, atol=2e-3)
    assert len(calls) < 50


def test_separable_classes_need_few_labels() -> None:
    x, y = clusters(90, seed=0, spread=0.1)
    assert few_label_accuracy(x, y, x, y)[0] > 99
    shuffled = y[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    assert few_label_accuracy(x, y, x, shuffled)[0] < 60


def test_scale_and_shift_of_the_features_do_not_matter() -> None:
    x, y = clusters(60, seed=0, spread=2)
    val_x, val_y = clusters(60, seed=1, spread=2)
    factors, shift = torch.tensor([1.0, 100, 0.01, 5, 1, 1]), torch.arange(6.0)
    got = few_label_accuracy(x, y, val_x, val_y)
    assert few_label_accuracy(x * factors + shift, y, val_x * factors + shift, val_y) == pytest.approx(got)


def test_draws_are_a_function_of_the_seed_and_their_spread_is_given() -> None:
    x, y = clusters(60, seed=0, spread=3)
    val_x, val_y = clusters(60, seed=1, spread=3)
    first = few_label_accuracy(x, y, val_x, val_y, seed=1)
    assert first == few_label_accuracy(x, y, val_x, val_y, seed=1)
    assert first != few_label_accuracy(x, y, val_x, val_y, seed=2)
    mean, spread = first
    assert 33 < mean < 100
    assert spread > 0
    assert few_label_accuracy(x, y, val_x, val_y, draws=1)[1] == 0


def test_too_few_images_of_a_class() -> None:
    x, y = clusters(12, seed=0)
    with pytest.raises(InputError, match="one class has only 4"):
        few_label_accuracy(x, y, x, y, per_class=5)
