"""Cached features against scikit-learn: the optimum, the choice of its penalty, cross-validation, five neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.nn.functional import normalize

from moco.data.source import folds
from moco.errors import InputError
from moco.probe.logistic import PENALTIES, five_nearest, solve
from tests.probe.test_logistic import clusters


def test_the_solution_is_scikit_learns_of_raw_features() -> None:
    x, y = clusters(60, seed=0, spread=2.5)
    x = x * torch.tensor([1, 10, 0.1, 1, 1, 1]) + 3
    found = solve(x, y, 3, parts=3, seed=0)
    deviation = x.double().std(0, correction=0)
    z = ((x - x.mean(0)) / torch.where(deviation > 1e-6, deviation, 1.0)).double().numpy()
    fold = folds(y.numpy(), 3, seed=0)

    def fitted(rows: np.ndarray, penalty: float) -> LogisticRegression:
        return LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10000).fit(z[rows], y.numpy()[rows])

    def right(part: int, penalty: float) -> float:
        rest = fold != part
        return 100 * fitted(rest, penalty).score(z[~rest], y.numpy()[~rest])

    oracle = {penalty: right(0, penalty) for penalty in PENALTIES}
    assert found.held_out == pytest.approx(oracle, abs=1e-3)
    assert found.penalty == max(p for p in PENALTIES if oracle[p] == max(oracle.values()))
    of_folds = [right(part, found.penalty) for part in range(3)]
    assert len(set(of_folds)) > 1
    assert found.cv_top1 == pytest.approx(np.mean(of_folds), abs=1e-3)
    assert found.cv_top1_std == pytest.approx(np.std(of_folds, ddof=1), abs=1e-3)
    expected = fitted(np.ones(60, bool), found.penalty).predict_proba(z)
    np.testing.assert_allclose(found.linear(x).softmax(1).detach().numpy(), expected, atol=2e-4)


def test_five_neighbours_vote_by_cosine() -> None:
    x, y = clusters(90, seed=0, spread=2)
    val, val_y = clusters(60, seed=1, spread=2)
    oracle = KNeighborsClassifier(5, metric="cosine").fit(x, y)
    votes = oracle.predict_proba(val)
    clear = np.sort(votes, 1)[:, -1] > np.sort(votes, 1)[:, -2]  # ties are decided otherwise there
    assert 30 < clear.sum() < 60
    got = five_nearest(x, y, val[clear], val_y[clear], 3)
    assert got == pytest.approx(100 * oracle.score(val[clear], val_y[clear]), abs=1e-3)


def test_ties_go_to_the_nearer_class() -> None:
    angles = torch.tensor([0.1, -0.3, 0.2, -0.25, 3.0])  # two of each class, and one far away
    x = torch.stack([angles.cos(), angles.sin()], 1)
    y = torch.tensor([0, 1, 0, 1, 2])
    assert five_nearest(normalize(x), y, torch.tensor([[1.0, 0]]), torch.tensor([0]), 3) == 100


def test_too_few_images_for_the_folds() -> None:
    x, y = clusters(9, seed=0)
    with pytest.raises(InputError, match=r"5-fold cross-validation needs 5 .* has 3: pass a smaller --folds"):
        solve(x, y, 3, parts=5, seed=0)
