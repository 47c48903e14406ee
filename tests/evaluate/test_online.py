"""The online figures against the measures themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moco import metrics
from moco.data.source import ArraySource
from moco.encoders import trunk
from moco.errors import InputError
from moco.evaluate.features import encode, eval_mode
from moco.evaluate.online import OnlineEvaluator
from tests.evaluate.test_features import CLASSES, CPU, SIZE, encoder, normalised, settings, source


def evaluator_of(train: ArraySource, val: ArraySource, seed: int = 3) -> OnlineEvaluator:
    return OnlineEvaluator(train, val, settings(), CPU, recipe="digits", size=SIZE, seed=seed, k=5)


def test_online_figures_are_the_metrics_of_the_features() -> None:
    train, val, net = source(40), source(21, seed=1), encoder()
    with torch.no_grad(), eval_mode(net):
        bank, features = (F.normalize(trunk(net)(normalised(s)), dim=1) for s in (train, val))
        outputs = F.normalize(net(normalised(val)), dim=1)
    got = dict(evaluator_of(train, val)(net))
    assert list(got) == ["knn_top1", "val_alignment", "val_uniformity", "val_tolerance"]
    y, val_y = torch.from_numpy(train.labels), torch.from_numpy(val.labels)
    assert got["knn_top1"] == pytest.approx(metrics.knn_accuracy(bank, y, features, val_y, CLASSES, k=5, t=0.1).item())
    assert got["val_uniformity"] == pytest.approx(metrics.uniformity(outputs, t=2).item(), rel=1e-4)
    assert got["val_tolerance"] == pytest.approx(metrics.tolerance(outputs, val_y).item(), rel=1e-4)
    assert 0 < got["val_alignment"] < 4


def test_alignment_is_of_two_different_views_that_stay_the_same() -> None:
    train, val, net = source(12), source(9, seed=1), encoder()
    evaluator = evaluator_of(train, val)
    first, second = dict(evaluator(net)), dict(evaluator(net))
    assert first == second
    views, _ = encode(net, evaluator.pairs, evaluator.augment)
    assert views.shape == (9, 2, 6)
    assert not torch.equal(views[:, 0], views[:, 1])
    q, k = F.normalize(views, dim=2).unbind(1)
    assert first["val_alignment"] == pytest.approx((q - k).square().sum(1).mean().item(), rel=1e-5)
    other = dict(evaluator_of(train, val, seed=4)(net))
    assert other["val_alignment"] != first["val_alignment"]


def test_without_labels_only_what_needs_none_is_measured() -> None:
    blank = source(10, labels=[0] * 10)
    blank.labels[:] = -1
    got = dict(evaluator_of(blank, blank)(encoder()))
    assert list(got) == ["val_alignment", "val_uniformity"]


def test_partly_labelled_training_images_give_a_labelled_bank() -> None:
    train = source(40)
    train.labels[::2] = -1
    evaluator = evaluator_of(train, source(9, seed=1))
    assert evaluator.bank is not None
    assert len(evaluator.bank.source) == 20
    assert "knn_top1" in dict(evaluator(encoder()))


def test_classes_that_differ_are_refused_before_training() -> None:
    val = source(9)
    val.classes = ["class0", "class1", "bird"]
    with pytest.raises(InputError, match="bird"):
        evaluator_of(source(9), val)
