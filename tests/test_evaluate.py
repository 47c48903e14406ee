"""Features in the data set's order, the mode given back, and the online figures against plain loops."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco import metrics
from moco.data.augment import Augment
from moco.data.recipes import find_recipe
from moco.data.source import ArraySource
from moco.encoders import build_encoder, feature_dim, trunk
from moco.errors import InputError, NumericsError
from moco.evaluate import Labelled, OnlineEvaluator, centre_crops, encode, eval_mode, extract_features, settle_batchnorm

SIZE, CLASSES = 8, 3
CPU = torch.device("cpu")
RECIPE = find_recipe("digits")


def source(n: int, seed: int = 0, labels: list[int] | None = None) -> ArraySource:
    """Class c is brighter in channel c: something that even an untrained encoder tells apart."""
    generator = np.random.default_rng(seed)
    y = np.array(labels) if labels is not None else np.arange(n) % CLASSES
    images = generator.integers(0, 120, (n, SIZE, SIZE, 3))
    images[np.arange(n), :, :, y] += 120
    return ArraySource(images.astype(np.uint8), y, [f"class{c}" for c in range(CLASSES)], "made up")


def settings(**changed: object) -> SimpleNamespace:
    given = dict(data=None, dataset="digits", loader="auto", workers=1, skip_bad_images=False, image_size=SIZE,
                 recipe="digits", seed=3, eval_freq=2, knn_k=5, knn_t=0.1)  # fmt: skip
    return SimpleNamespace(**{**given, **changed})


def encoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_encoder("smallcnn", num_classes=6)


def normalised(data: ArraySource) -> torch.Tensor:
    x = torch.from_numpy(np.asarray(data.images)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(RECIPE.mean).view(3, 1, 1)) / torch.tensor(RECIPE.std).view(3, 1, 1)


def test_features_are_those_of_the_plain_images_in_order() -> None:
    data, net = source(300), encoder()  # 300: a full batch of 256 and a short one
    loader = centre_crops(data, RECIPE, SIZE, settings(), CPU)
    x, y = extract_features(trunk(net), loader, Augment(RECIPE.for_evaluation(), 0))
    with torch.no_grad(), eval_mode(net):
        oracle = trunk(net)(normalised(data))
    assert x.shape == (300, feature_dim(net))
    torch.testing.assert_close(x, oracle)
    assert y.tolist() == data.labels.tolist()
    unit, _ = extract_features(trunk(net), loader, Augment(RECIPE.for_evaluation(), 0), normalise=True)
    torch.testing.assert_close(unit, F.normalize(oracle, dim=1))


def test_modes_are_given_back() -> None:
    net = encoder()
    net.features[1].eval()  # type: ignore[index, union-attr]  # a frozen layer stays frozen
    before = [module.training for module in net.modules()]
    statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
    loader = centre_crops(source(9), RECIPE, SIZE, settings(), CPU)
    extract_features(trunk(net), loader, Augment(RECIPE.for_evaluation(), 0))
    assert [module.training for module in net.modules()] == before
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in net.named_buffers())
    with pytest.raises(ZeroDivisionError), eval_mode(net):
        raise ZeroDivisionError
    assert [module.training for module in net.modules()] == before


class FakeLoader:
    """Hands out given batches, as a loader that skipped bad images would."""

    device = CPU

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def epoch(self, epoch: int):  # type: ignore[no-untyped-def]
        for index in self.batches:
            crops = torch.tensor(index, dtype=torch.uint8)[:, None, None, None, None].expand(-1, 1, 2, 2, 3)
            yield SimpleNamespace(crops=crops, index=torch.tensor(index), labels=torch.tensor(index) % 2)


class Brightness(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))[:, None] * self.scale


def whole(crops: torch.Tensor, index: torch.Tensor, epoch: int, view: int) -> torch.Tensor:
    return crops.permute(0, 3, 1, 2).float()


def test_order_is_by_index_and_a_stand_in_counts_once() -> None:
    x, y = encode(Brightness(), FakeLoader([[4, 2], [], [2, 0]]), whole)  # type: ignore[arg-type]
    assert x[:, 0, 0].tolist() == [0, 2, 4]
    assert y.tolist() == [0, 0, 0]


def test_features_that_are_not_finite_are_not_measured() -> None:
    net = Brightness()
    with torch.no_grad():
        net.scale.fill_(float("nan"))
    with pytest.raises(NumericsError, match="not finite"):
        encode(net, FakeLoader([[0, 1]]), whole)  # type: ignore[arg-type]


def test_online_figures_are_the_metrics_of_the_features() -> None:
    train, val, net = source(40), source(21, seed=1), encoder()
    with torch.no_grad(), eval_mode(net):
        bank, features = (F.normalize(trunk(net)(normalised(s)), dim=1) for s in (train, val))
        outputs = F.normalize(net(normalised(val)), dim=1)
    got = dict(OnlineEvaluator(train, val, settings(), CPU)(net))
    assert list(got) == ["knn_top1", "val_alignment", "val_uniformity", "val_tolerance"]
    y, val_y = torch.from_numpy(train.labels), torch.from_numpy(val.labels)
    assert got["knn_top1"] == pytest.approx(metrics.knn_accuracy(bank, y, features, val_y, CLASSES, k=5, t=0.1).item())
    assert got["val_uniformity"] == pytest.approx(metrics.uniformity(outputs, t=2).item(), rel=1e-4)
    assert got["val_tolerance"] == pytest.approx(metrics.tolerance(outputs, val_y).item(), rel=1e-4)
    assert 0 < got["val_alignment"] < 4


def test_alignment_is_of_two_different_views_that_stay_the_same() -> None:
    train, val, net = source(12), source(9, seed=1), encoder()
    evaluator = OnlineEvaluator(train, val, settings(), CPU)
    first, second = dict(evaluator(net)), dict(evaluator(net))
    assert first == second
    views, _ = encode(net, evaluator.pairs, evaluator.augment)
    assert views.shape == (9, 2, 6)
    assert not torch.equal(views[:, 0], views[:, 1])
    q, k = F.normalize(views, dim=2).unbind(1)
    assert first["val_alignment"] == pytest.approx((q - k).square().sum(1).mean().item(), rel=1e-5)
    other = dict(OnlineEvaluator(train, val, settings(seed=4), CPU)(net))
    assert other["val_alignment"] != first["val_alignment"]


def test_without_labels_only_what_needs_none_is_measured() -> None:
    blank = source(10, labels=[0] * 10)
    blank.labels[:] = -1
    got = dict(OnlineEvaluator(blank, blank, settings(), CPU)(encoder()))
    assert list(got) == ["val_alignment", "val_uniformity"]


def test_partly_labelled_training_images_give_a_labelled_bank() -> None:
    train = source(40)
    train.labels[::2] = -1
    part = Labelled(train)
    assert len(part) == 20
    assert (part.labels >= 0).all()
    assert part.name(3) == train.name(7)
    np.testing.assert_array_equal(part.decode(3), train.decode(7))
    evaluator = OnlineEvaluator(train, source(9, seed=1), settings(), CPU)
    assert evaluator.bank is not None
    assert len(evaluator.bank.source) == 20
    assert "knn_top1" in dict(evaluator(encoder()))


def test_classes_that_differ_are_refused_before_training() -> None:
    val = source(9)
    val.classes = ["class0", "class1", "bird"]
    with pytest.raises(InputError, match="bird"):
        OnlineEvaluator(source(9), val, settings(), CPU)


def test_how_often(tmp_path) -> None:  # type: ignore[no-untyped-def]
    train = source(9)
    assert OnlineEvaluator.for_pretraining(settings(eval_freq=0), train, CPU) is None
    assert (
        OnlineEvaluator.for_pretraining(settings(dataset="folder", data=str(tmp_path), eval_freq=None), train, CPU)
        is None
    )
    with pytest.raises(InputError, match="val"):
        OnlineEvaluator.for_pretraining(settings(dataset="folder", data=str(tmp_path), eval_freq=1), train, CPU)


def test_an_untrained_encoder_gets_the_statistics_of_the_data() -> None:
    data, net = source(20), encoder().eval()
    first = net.features[0](normalised(data))  # type: ignore[index, operator, union-attr]
    assert settle_batchnorm(net, data, RECIPE, SIZE, settings(), CPU)
    statistics = net.state_dict()
    torch.testing.assert_close(statistics["features.1.running_mean"], first.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(statistics["features.1.running_var"], first.var((0, 2, 3)), atol=1e-5, rtol=1e-4)
    assert not any(module.training for module in net.modules())
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    again = encoder().train()
    settle_batchnorm(again, data, RECIPE, SIZE, settings(), CPU)
    assert all(module.training for module in again.modules())
    assert all(torch.equal(value, statistics[name]) for name, value in again.state_dict().items())
    assert not settle_batchnorm(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), data, RECIPE, SIZE, settings(), CPU)
