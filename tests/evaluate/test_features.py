"""Features in the data set's order, and the mode given back."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.source import ArraySource
from moco.encoders import build_encoder, feature_dim, trunk
from moco.errors import NumericsError
from moco.evaluate.features import centre_crops, encode, eval_mode, extract_features, settle_batchnorm
from moco.run.options import DataOptions

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


def settings() -> DataOptions:
    return DataOptions(dataset="digits", workers=1)


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
