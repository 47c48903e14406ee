"""The table of metrics: its directions are true, and a row is all that a new metric needs."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from moco import metrics
from moco.evaluate.measures import measure
from moco.metrics.table import LOGGED, METRICS, OF_FEATURES, Features, Metric

LABELS = torch.arange(60) % 3


def features(x: Tensor, q: Tensor, k: Tensor) -> Features:
    predict = partial(_accuracy, classes=3, k=5)
    return Features(x, LABELS, q, k, x, LABELS, classes=3, alpha=2, t=2, predict=predict)


def _accuracy(*rows: Tensor, classes: int, k: int) -> float:
    bank, bank_labels, x, labels = rows
    return metrics.knn_accuracy(bank, bank_labels, x, labels, classes, k).item()


@pytest.fixture
def good() -> Features:
    """Three tight classes at the corners of a simplex; both views of an image coincide nearly."""
    x = normalize(torch.eye(3)[LABELS] + 0.05 * noise(0), dim=1)
    return features(x, x, normalize(x + 0.01 * noise(1), dim=1))


@pytest.fixture
def bad() -> Features:
    """Two opposite points that the labels know nothing about; the views of an image are as far apart as of two."""
    side = (torch.arange(60)[:, None] // 3 % 2) * 2 - 1
    x = normalize(side * torch.tensor([1.0, 0, 0]) + 0.05 * noise(2), dim=1)
    centre = torch.tensor([0.0, 1, 0])
    return features(x, normalize(centre + 0.1 * noise(3), dim=1), normalize(centre + 0.5 * noise(4), dim=1))


def noise(seed: int) -> Tensor:
    return torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OF_FEATURES)
def test_better_is_better(name: str, good: Features, bad: Features) -> None:
    row = OF_FEATURES[name]
    assert row.function is not None
    difference = float(row.function(good)) - float(row.function(bad))
    assert math.isfinite(difference)
    assert row.direction == ("" if not row.better else f"{row.better} is better")
    if row.better:
        assert (difference > 0) == (row.better == "higher"), difference


def test_mean_similarities_are_those_of_a_loop(good: Features) -> None:
    cosines = good.q.double() @ good.k.double().T
    own = cosines.diagonal()
    measured = measure(good, bins=4).values
    assert measured["positive_similarity"] == pytest.approx(own.mean().item())
    others = [cosines[i, j].item() for i in range(60) for j in range(60) if i != j]
    assert measured["negative_similarity"] == pytest.approx(sum(others) / len(others))


def test_a_row_is_all_that_a_metric_needs(good: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Metric("toy", "a toy", lambda f: f.x.new_tensor(float(f.classes)))
    monkeypatch.setitem(OF_FEATURES, "toy", toy)
    assert measure(good, bins=4).values["toy"] == 3


def test_names_are_those_of_the_files() -> None:
    accuracies = ["lincls_top1", "knn_top1", "online_top1", "val_mr_acc1", "val_cr_acc1"]
    depth = ["depth_mse", "depth_rmse", "depth_abs_rel", "depth_delta1"]
    assert list(LOGGED) == [*accuracies, *depth, "val_alignment", "val_uniformity", "val_tolerance", "loss"]
    assert len(METRICS) == len(OF_FEATURES) + 9  # all but those of classifiers and of depth, and the loss
    assert METRICS["knn_top1"].heading == "kNN top-1 [%]" and METRICS["alignment"].heading == "alignment"
