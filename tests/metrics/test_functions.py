"""Each measure against a float64 loop over samples or pairs, and against its closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import special
from torch import Tensor
from torch.nn.functional import normalize

from moco.errors import InputError
from moco.metrics import functions as metrics


def unit(n: int, dim: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_the_mean_distance(alpha: float) -> None:
    q, k = unit(7, 5), unit(7, 5, seed=1)
    oracle = np.mean([math.dist(a, b) ** alpha for a, b in zip(q.double().tolist(), k.double().tolist(), strict=True)])
    assert metrics.alignment(q, k, alpha).item() == pytest.approx(oracle, rel=1e-6)


def test_alignment_closed_forms() -> None:
    q = unit(6, 4)
    assert metrics.alignment(q, q).item() == 0
    assert metrics.alignment(q, -q).item() == pytest.approx(4, rel=1e-6)
    right_angles = torch.eye(4)
    assert metrics.alignment(right_angles, right_angles.roll(1, 0), alpha=1).item() == pytest.approx(math.sqrt(2))


def uniformity_oracle(x: Tensor, t: float) -> float:
    rows = x.double().tolist()
    pairs = [math.exp(-t * math.dist(a, b) ** 2) for i, a in enumerate(rows) for b in rows[:i]]
    return math.log(sum(pairs) / len(pairs))


@pytest.mark.parametrize("t", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("at_once", [1 << 24, 40])
def test_uniformity_is_the_log_mean_over_pairs(t: float, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PAIRS_AT_ONCE", at_once)  # 40: three rows at a time, the last chunk a single row
    x = unit(13, 3)
    assert metrics.uniformity(x, t).item() == pytest.approx(uniformity_oracle(x, t), rel=1e-5)


def test_uniformity_closed_forms() -> None:
    assert metrics.uniformity(unit(1, 9).expand(5, 9), t=2).item() == pytest.approx(0, abs=1e-5)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert metrics.uniformity(opposite, t=3).item() == pytest.approx(-12)
    simplex = torch.eye(5)  # every pair at squared distance 2
    assert metrics.uniformity(simplex, t=2).item() == pytest.approx(-4)
    with pytest.raises(InputError, match="2 samples"):
        metrics.uniformity(unit(1, 3))


@pytest.mark.parametrize(("dim", "t"), [(2, 2.0), (3, 0.1), (64, 2.0), (128, 8.0), (2048, 3.0)])
def test_lowest_uniformity_is_the_papers_series(dim: int, t: float) -> None:
    oracle = -2 * t + math.log(float(special.hyp0f1(dim / 2, t * t)))
    lowest, highest = metrics.uniformity_bounds(dim, t)
    assert lowest == pytest.approx(oracle, rel=1e-10)
    assert highest == 0


def test_lowest_uniformity_far_out() -> None:
    """On the sphere in R^3 it is closed: log[(1 - e^(-4t)) / (4t)]; t = 500 overflows fp64 when done naively."""
    for t in (1.0, 20.0, 500.0):
        assert metrics.uniformity_bounds(3, t)[0] == pytest.approx(math.log(-math.expm1(-4 * t) / (4 * t)), rel=1e-9)


def test_many_random_points_come_near_the_lowest() -> None:
    assert metrics.uniformity(unit(3000, 8), t=2).item() == pytest.approx(metrics.uniformity_bounds(8, 2)[0], abs=0.01)


def tolerance_oracle(x: Tensor, labels: Tensor) -> float:
    rows, n = x.double(), len(x)
    same = [float(rows[i] @ rows[j]) for i in range(n) for j in range(n) if i != j and labels[i] == labels[j] >= 0]
    return sum(same) / len(same)


@given(st.lists(st.integers(-1, 3), min_size=2, max_size=12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_tolerance_is_the_mean_over_pairs_of_a_class(labels: list[int], seed: int) -> None:
    x, y = unit(len(labels), 4, seed), torch.tensor(labels)
    if max(labels.count(c) for c in range(4)) < 2:
        with pytest.raises(InputError):
            metrics.tolerance(x, y)
    else:
        assert metrics.tolerance(x, y).item() == pytest.approx(tolerance_oracle(x, y), abs=1e-6)


def test_tolerance_closed_forms() -> None:
    x = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2])]
    assert metrics.tolerance(x, torch.tensor([0, 0, 1, 1, 2])).item() == 1
    assert metrics.tolerance(x, torch.tensor([0, 1, 0, 1, -1])).item() == 0


@pytest.mark.parametrize("at_once", [1 << 24, 8])
def test_contrastive_accuracy_ranks_the_key_among_the_queue(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PAIRS_AT_ONCE", at_once)
    q, k, queue = unit(40, 3), normalize(unit(40, 3) + 0.7 * unit(40, 3, 1), dim=1), unit(60, 3, 2).T
    pairs = zip(q.double(), k.double(), strict=True)
    rank = [sum(float(a @ n) >= float(a @ b) for n in queue.T.double()) for a, b in pairs]
    got = metrics.contrastive_accuracy(q, k, queue)
    assert 0 < got["acc1"] < got["acc5"] < 100
    assert got["acc1"].item() == pytest.approx(100 * np.mean([r < 1 for r in rank]))
    assert got["acc5"].item() == pytest.approx(100 * np.mean([r < 5 for r in rank]))


def test_collapse_and_nan_are_not_accurate() -> None:
    one = unit(1, 4)
    got = metrics.contrastive_accuracy(one.expand(6, 4), one.expand(6, 4), one.expand(20, 4).T)
    assert got == {"acc1": 0, "acc5": 0}
    nan = torch.full((6, 4), math.nan)
    assert metrics.contrastive_accuracy(nan, nan, unit(20, 4).T) == {"acc1": 0, "acc5": 0}
    assert metrics.topk_accuracy(torch.full((3, 10), math.nan), torch.zeros(3, dtype=torch.long)).tolist() == [0, 0]


def test_topk_accuracy() -> None:
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [0, 9, 5, 7]])
    assert metrics.topk_correct(logits, torch.tensor([0, 2, 2]), (1, 2, 3)).tolist() == [1, 2, 3]
    assert metrics.topk_accuracy(logits, torch.tensor([0, 2, 2]), (1, 5)).tolist() == pytest.approx([100 / 3, 100])


def test_effective_rank() -> None:
    assert metrics.effective_rank(unit(1, 6).expand(9, 6)).item() == pytest.approx(1, abs=1e-3)
    assert metrics.effective_rank(torch.eye(7).repeat(3, 1)).item() == pytest.approx(7, rel=1e-5)
    x = unit(20, 5) @ torch.diag(torch.tensor([3.0, 1, 0.5, 0.1, 0.01]))
    share = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share /= share.sum()
    assert metrics.effective_rank(x).item() == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-5)


def knn_oracle(train_x: Tensor, train_y: Tensor, test_x: Tensor, k: int, t: float) -> list[int]:
    answers = []
    for row in test_x.double():
        near = sorted(
            ((float(row @ other), int(y)) for other, y in zip(train_x.double(), train_y, strict=True)), reverse=True
        )
        votes: dict[int, float] = {}
        for similarity, y in near[:k]:
            votes[y] = votes.get(y, 0.0) + math.exp(similarity / t)
        answers.append(max(votes, key=votes.__getitem__))
    return answers


@pytest.mark.parametrize(("k", "t"), [(1, 0.1), (7, 0.1), (7, 5.0), (30, 0.02), (1000, 0.1)])
@pytest.mark.parametrize("chunk", [None, 4])
def test_knn_votes_as_in_mocos_demo(k: int, t: float, chunk: int | None) -> None:
    train_x, train_y, test_x = unit(30, 4), torch.arange(30) % 3, unit(25, 4, 1)
    got = metrics.knn_predict(train_x, train_y, test_x, classes=3, k=k, t=t, chunk=chunk)
    assert got.tolist() == knn_oracle(train_x, train_y, test_x, k, t)


def test_knn_temperature_decides_between_near_and_many() -> None:
    """One neighbour at similarity 1 against three at 0.5: the vote turns at e^(1/t) = 3 e^(0.5/t), t = 0.5 / log 3."""
    corner = math.sqrt(0.75)
    train_x = torch.tensor([[1.0, 0.0], [0.5, corner], [0.5, -corner], [0.5, corner]])
    train_y = torch.tensor([0, 1, 1, 1])
    turn = 0.5 / math.log(3)
    for t, expected in ((turn * 0.98, 0), (turn * 1.02, 1)):
        assert metrics.knn_predict(train_x, train_y, torch.tensor([[1.0, 0.0]]), 2, t=t).item() == expected
    assert (
        metrics.knn_predict(train_x, train_y, torch.tensor([[1.0, 0.0]]), 2, t=0.005).item() == 0
    )  # e^200 would overflow


def test_knn_accuracy_and_empty() -> None:
    x, y = torch.eye(4), torch.arange(4)
    assert metrics.knn_accuracy(x, y, x, y, classes=4, k=1).item() == 100
    assert metrics.knn_accuracy(x, y, x, y.roll(1), classes=4, k=1).item() == 0
    with pytest.raises(InputError, match="none"):
        metrics.knn_predict(x[:0], y[:0], x, classes=4)


def test_half_precision_is_widened() -> None:
    x, y = unit(12, 8), torch.arange(12) % 3
    for dtype in (torch.bfloat16, torch.float16):
        low = x.to(dtype)
        assert metrics.uniformity(low).dtype == torch.float32
        assert metrics.uniformity(low).item() == pytest.approx(metrics.uniformity(low.float()).item(), rel=1e-6)
        assert metrics.tolerance(low, y).item() == pytest.approx(metrics.tolerance(low.float(), y).item(), rel=1e-6)
