"""Histograms against a loop over pairs, collapse against the papers' matrices in float64, and both in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from moco.errors import InputError
from moco.metrics import functions as metrics
from moco.metrics.geometry import class_collapse, similarity_histograms
from tests.metrics.test_functions import unit


@pytest.mark.parametrize("at_once", [1 << 24, 30])
def test_histograms_count_every_pair(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PAIRS_AT_ONCE", at_once)  # 30: two rows at a time, the last chunk a single one
    q, k, labels = unit(13, 3), unit(13, 3, 1), torch.arange(13) % 3
    labels[5] = labels[8] = -1
    got = similarity_histograms(q, k, labels, bins=10)
    cosines = (q.double() @ k.double().T).numpy()
    y = labels.numpy()
    alike = (y[:, None] == y) & (y >= 0)[:, None]
    one = np.eye(13, dtype=bool)
    assert got.same_class is not None
    for counts, chosen in ((got.positive, one), (got.negative, ~one), (got.same_class, alike & ~one)):
        assert counts.tolist() == np.histogram(cosines[chosen], 10, (-1, 1))[0].tolist()
    assert similarity_histograms(q, k).same_class is None


def test_histograms_closed_forms() -> None:
    x = torch.eye(4)
    got = similarity_histograms(x, x, bins=4)  # edges -1, -.5, 0, .5, 1
    assert got.positive.tolist() == [0, 0, 0, 4]
    assert got.negative.tolist() == [0, 0, 12, 0]
    opposite = similarity_histograms(x, -x, bins=4)
    assert opposite.positive.tolist() == [4, 0, 0, 0]
    beyond = similarity_histograms(x * 1.0001, x * 1.0001, bins=4)  # rounding may pass 1
    assert beyond.positive.tolist() == [0, 0, 0, 4]


def collapse_oracle(x: Tensor, labels: Tensor) -> tuple[float, float, float, float]:
    """Papyan et al., with the matrices written out."""
    rows, y = x.double().numpy(), labels.numpy()
    classes = sorted({int(c) for c in y if c >= 0})
    means = np.stack([rows[y == c].mean(0) for c in classes])
    centred = means - means.mean(0)
    deviations = np.concatenate([rows[y == c] - rows[y == c].mean(0) for c in classes])
    within = deviations.T @ deviations / len(deviations)
    between = centred.T @ centred / len(classes)
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for i, a in enumerate(centred) for b in centred[:i]]
    own = [
        float(row @ mean / np.linalg.norm(row) / np.linalg.norm(mean))
        for c, mean in zip(classes, means, strict=True) for row in rows[y == c]
    ]  # fmt: skip
    target = -1 / (len(classes) - 1)
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(classes)
    return nc1, float(np.mean(own)), float(np.mean(cosines)), float(np.mean([abs(c - target) for c in cosines]))


@pytest.mark.parametrize("dim", [2, 3, 9])  # fewer dimensions than classes, as many as a simplex needs, more
def test_collapse_is_the_papers(dim: int) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 5, 5, -1])
    x = unit(12, dim)
    got = class_collapse(x, labels)
    assert got.classes == 4
    measured = (got.within_between, got.own_mean_cosine, got.simplex_cosine, got.simplex_deviation)
    assert measured == pytest.approx(collapse_oracle(x, labels), rel=1e-9)


def test_collapse_closed_forms() -> None:
    labels = torch.arange(20) % 5
    perfect = class_collapse(torch.eye(5)[labels], labels)  # the corners of a simplex, once centred
    assert perfect.within_between == pytest.approx(0, abs=1e-12)
    assert perfect.own_mean_cosine == pytest.approx(1)
    assert perfect.simplex_cosine == pytest.approx(perfect.simplex_target) == -0.25
    assert perfect.simplex_deviation == pytest.approx(0, abs=1e-9)
    # two classes at ±1 with deviations ±s: Σ_W = s², Σ_B = 1, two classes
    line = torch.tensor([[1.3], [0.7], [-1.3], [-0.7]])
    two = class_collapse(line, torch.tensor([0, 0, 1, 1]))
    assert two.within_between == pytest.approx(0.09 / 2, rel=1e-6)
    assert two.simplex_target == -1
    # four means at the corners of a square are no simplex: their cosines are 0, 0 and -1
    square = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])[torch.arange(8) % 4]
    got = class_collapse(square, torch.arange(8) % 4)
    assert got.simplex_cosine == pytest.approx(-1 / 3)
    assert got.simplex_deviation == pytest.approx((2 / 3 + 2 * 1 / 3) / 3)


def test_what_does_not_exist_is_refused() -> None:
    x = unit(6, 4)
    with pytest.raises(InputError, match="samples have 1"):
        class_collapse(x, torch.zeros(6, dtype=torch.long))
    with pytest.raises(InputError, match="samples have 0"):
        class_collapse(x, torch.full((6,), -1))
    with pytest.raises(InputError, match="every class has one"):
        class_collapse(x, torch.arange(6))
    with pytest.raises(InputError, match="centre"):
        class_collapse(x[:1].expand(6, 4), torch.arange(6) % 2)
    bad = x.clone()
    bad[2, 1] = math.nan
    labels = torch.arange(6) % 2
    for measure in (
        lambda: class_collapse(bad, labels),
        lambda: similarity_histograms(x, bad),
        lambda: metrics.effective_rank(bad),
        lambda: metrics.knn_predict(bad, labels, x, 2),
        lambda: metrics.knn_predict(x, labels, normalize(bad, dim=1), 2),
    ):
        with pytest.raises(InputError, match="not finite"):
            measure()
    with pytest.raises(InputError, match="all features are zero"):
        metrics.effective_rank(torch.zeros(3, 2))
    assert math.isnan(metrics.uniformity(bad).item())
    assert math.isnan(metrics.tolerance(bad, labels).item())
    assert math.isnan(metrics.alignment(x, bad).item())
