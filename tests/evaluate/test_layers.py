"""Features of a trunk, an output and a named layer, from one pass; the projection head out of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from moco.encoders import Projector, build_encoder, trunk
from moco.encoders.files import EncoderFile
from moco.errors import InputError
from moco.evaluate.layers import Layers, load_projection


def encoder(arch: str = "smallcnn", **head: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(arch, 6, **head).eval()


def file_of(network: nn.Module, layout: str = "MoCo", **options: str) -> EncoderFile:
    return EncoderFile(Path("checkpoint.pth.tar"), layout, network.state_dict(), options=dict(options))


@torch.no_grad()
def test_features_side_by_side() -> None:
    network, images = encoder(), torch.randn(5, 3, 8, 8)
    layers = Layers(network, ["features.4", "output", "trunk"], 8)
    assert layers.widths == (64 * 2 * 2, 6, 128)
    middle, output, features = layers(images).split(layers.widths, dim=1)
    torch.testing.assert_close(features, trunk(network)(images))
    torch.testing.assert_close(output, normalize(network(images), dim=1))
    batchnorm = network.features[:5](images)  # type: ignore[index]
    assert (batchnorm < 0).any()  # the ReLU after it works in place
    torch.testing.assert_close(middle, batchnorm.flatten(1))
    assert torch.equal(layers(images), layers(images))


@torch.no_grad()
def test_the_papers_names_of_smallalexnets_layers() -> None:
    network, images = encoder("smallalexnet"), torch.randn(2, 3, 64, 64)
    assert torch.equal(Layers(network, ["fc7"], 64)(images), trunk(network)(images))
    assert torch.equal(Layers(network, ["conv5"], 64)(images), network.blocks[:5](images).flatten(1))  # type: ignore[index]


def test_modes_and_statistics_stay() -> None:
    network = encoder().train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    Layers(network, ["features.3"], 8)
    assert network.features[1].training  # type: ignore[index, union-attr]
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


@pytest.mark.parametrize(("name", "says"), [("feature.3", "did you mean features.3"), ("fc", "no such layer")])
def test_a_layer_that_is_not_there(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Layers(encoder(), [name], 8)


HEADS: list[dict[str, Any]] = [
    {"mlp": False},
    {"mlp": True},
    {"projector": Projector(3, 7)},
    {"projector": Projector(2, 9, bn=True)},
    {"projector": Projector(1, bn=True)},
]


@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_the_projection_head_comes_from_the_file(shape: dict[str, Any]) -> None:
    wanted, network, images = encoder(**shape), build_encoder("smallcnn", 1).eval(), torch.randn(4, 3, 8, 8)
    for name, buffer in wanted.fc.named_buffers():  # type: ignore[union-attr]
        if "running" in name:
            buffer.uniform_(0.5, 2)
    network.load_state_dict({k: v for k, v in wanted.state_dict().items() if not k.startswith("fc")}, strict=False)
    assert load_projection(network, file_of(wanted))
    network.eval()
    torch.testing.assert_close(network(images), wanted(images))
    assert network.state_dict().keys() == wanted.state_dict().keys()


def test_a_classifier_is_no_projection_head() -> None:
    network = build_encoder("smallcnn", 1)
    before = network.fc
    assert not load_projection(network, file_of(encoder(), layout="a plain network (torchvision, timm)"))
    assert not load_projection(network, file_of(nn.Sequential()))  # MoCo's layout without .fc, as exported
    assert network.fc is before
    probed = file_of(encoder(), layout="a network in DistributedDataParallel", features_from="output")
    assert load_projection(network, probed)  # a probe of the outputs keeps the head in its checkpoint
    odd = file_of(encoder())
    odd.state["fc.gain"] = torch.ones(1)
    with pytest.raises(InputError, match="neither linear nor"):
        load_projection(network, odd)
