"""Encoders: names, shapes, state keys, the trunk as a view, and one clear sentence for what cannot be built."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from moco.encoders import Projector, available, build_encoder, classifier_name, feature_dim, trunk
from moco.errors import InputError

CASES = [
    ("resnet18", 32, "fc", 512),
    ("resnet18_small", 8, "fc", 512),
    ("resnet50_small", 8, "fc", 2048),
    ("smallcnn", 32, "fc", 128),
    ("smallalexnet", 64, "fc", 4096),
    ("mobilenet_v3_small", 32, "classifier.3", 1024),
    ("densenet121", 32, "classifier", 1024),
    ("swin_t", 32, "head", 768),
    ("vit_b_32", 32, "heads.head", 768),
    ("googlenet", 32, "fc", 1024),
    ("timm:resnet10t", 32, "fc", 512),
    ("timm:vit_tiny_patch16_224", 32, "head", 192),
    ("timm:convnext_atto", 32, "head.fc", 320),
]


@pytest.mark.parametrize(("arch", "size", "name", "dim"), CASES)
@pytest.mark.parametrize("mlp", [False, True])
def test_shapes_and_trunk(arch: str, size: int, name: str, dim: int, mlp: bool) -> None:
    encoder = build_encoder(arch, num_classes=5, mlp=mlp, image_size=size)
    assert all(module.training for module in encoder.modules())
    assert classifier_name(encoder) == name
    assert feature_dim(encoder) == dim
    encoder.eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features = trunk(encoder)(images)
        output = encoder(images)
        head = encoder.get_submodule(name)
        assert features.shape == (2, dim)
        assert output.shape == (2, 5)
        torch.testing.assert_close(head(features), output)
    assert output.abs().sum() > 0, "a classifier that starts at zero gives vectors without a direction"
    if mlp:
        assert [type(layer).__name__ for layer in head.children()] == ["Linear", "ReLU", "Linear"]


def test_projectors_are_those_of_mocov3_and_solo_learn() -> None:
    """moco-v3's `_build_mlp`: no biases, BatchNorm after each layer, the last without scale and shift."""
    v3 = build_encoder("resnet18", 256, projector=Projector(3, 4096, bn=True)).fc
    kinds = [type(layer).__name__ for layer in v3]  # type: ignore[union-attr, arg-type]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    shapes = {name: tuple(p.shape) for name, p in v3.named_parameters()}  # type: ignore[union-attr]
    assert shapes == {
        "0.weight": (4096, 512), "1.weight": (4096,), "1.bias": (4096,),
        "3.weight": (4096, 4096), "4.weight": (4096,), "4.bias": (4096,), "6.weight": (256, 4096),
    }  # fmt: skip
    solo = build_encoder("resnet18_small", 256, projector=Projector(2, 2048)).fc
    assert {name: tuple(p.shape) for name, p in solo.named_parameters()} == {  # type: ignore[union-attr]
        "0.weight": (2048, 512), "0.bias": (2048,), "2.weight": (256, 2048), "2.bias": (256,)
    }  # fmt: skip


@pytest.mark.parametrize("arch", ["smallcnn", "timm:vit_tiny_patch16_224"])
def test_a_projector_changes_no_name_of_the_trunk(arch: str) -> None:
    plain, shaped = (build_encoder(arch, 6, image_size=32, projector=p).eval() for p in (None, Projector(2, 5, True)))
    head = classifier_name(plain)
    assert classifier_name(shaped) == head and feature_dim(shaped) == feature_dim(plain)
    assert {k for k in shaped.state_dict() if not k.startswith(head)} == {
        k for k in plain.state_dict() if not k.startswith(head)
    }
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(shaped.get_submodule(head)(trunk(shaped)(images)), shaped(images))
    two = build_encoder(arch, 6, mlp=True).state_dict()
    assert build_encoder(arch, 6, projector=Projector(2)).state_dict().keys() == two.keys()
    assert build_encoder(arch, 6, projector=Projector(1)).state_dict().keys() == plain.state_dict().keys()


def test_keys_are_torchvisions() -> None:
    ours = build_encoder("resnet18", num_classes=7)
    theirs = models.resnet18(num_classes=7)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert build_encoder("resnet18", 7, mlp=True).state_dict().keys() - theirs.state_dict().keys() == {
        "fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"
    }  # fmt: skip


def test_small_resnet_keeps_the_resolution() -> None:
    encoder = build_encoder("resnet18_small", num_classes=4)
    assert encoder.conv1.weight.shape == (64, 3, 3, 3)  # type: ignore[union-attr]
    assert encoder.conv1.stride == (1, 1)
    assert isinstance(encoder.maxpool, nn.Identity)
    assert encoder.state_dict().keys() == models.resnet18().state_dict().keys()


def test_smallalexnet_layers_are_the_papers() -> None:
    shapes = [tuple(p.shape) for n, p in build_encoder("smallalexnet", 128).named_parameters() if p.ndim > 1]
    assert shapes == [
        (96, 3, 3, 3), (192, 96, 3, 3), (384, 192, 3, 3), (384, 384, 3, 3), (192, 384, 3, 3),
        (4096, 192 * 7 * 7), (4096, 4096), (128, 4096),
    ]  # fmt: skip


def test_trunk_is_a_view() -> None:
    encoder = build_encoder("smallcnn", num_classes=4, image_size=32)
    view = trunk(encoder)
    images = torch.randn(3, 3, 32, 32)
    view(images).sum().backward()
    assert all(p.grad is not None for n, p in encoder.named_parameters() if not n.startswith("fc"))
    assert encoder.fc.weight.grad is None  # type: ignore[union-attr]
    assert isinstance(encoder.fc, nn.Linear)
    ours = {id(p) for p in encoder.parameters()}
    assert {id(p) for p in view.parameters()} < ours
    with torch.no_grad():
        encoder.eval()
        before = view.eval()(images)
        next(encoder.parameters()).mul_(2).add_(1)
        assert not torch.equal(view(images), before)


def test_nested_classifier_leaves_the_encoder_alone() -> None:
    encoder = build_encoder("alexnet", num_classes=4)
    view = trunk(encoder)
    assert isinstance(view.get_submodule("classifier.6"), nn.Identity)
    assert isinstance(encoder.get_submodule("classifier.6"), nn.Linear)


def test_trying_the_size_leaves_batchnorm_alone() -> None:
    encoder = build_encoder("resnet18_small", num_classes=4, image_size=8)
    assert encoder.bn1.num_batches_tracked == 0  # type: ignore[union-attr]
    assert not encoder.state_dict()["bn1.running_mean"].any()


# One small member of each family not built above; the large ones share its code.
@pytest.mark.parametrize(
    "arch",
    [
        "alexnet", "convnext_tiny", "efficientnet_b0", "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2",
        "regnet_x_400mf", "regnet_y_400mf", "resnext50_32x4d", "shufflenet_v2_x0_5", "swin_v2_t", "vgg11",
    ],
)  # fmt: skip
def test_every_family_has_a_linear_classifier(arch: str) -> None:
    assert arch in available()
    encoder = build_encoder(arch, num_classes=3)
    last = encoder.get_submodule(classifier_name(encoder))
    assert isinstance(last, nn.Linear)
    assert last.out_features == 3


@pytest.mark.parametrize(
    ("arch", "size", "says"),
    [
        ("resnet5", None, "resnet50"),
        ("ResNet18", None, "resnet18"),
        ("resnet18d", None, "timm:resnet18d"),
        ("timm:resnett18", None, "timm:resnet18"),
        ("qqq", None, "timm:NAME"),
        ("squeezenet1_0", None, "linear classifier"),
        ("timm:deit_tiny_distilled_patch16_224", None, "linear classifier"),
        ("timm:resnetv2_50", None, "linear classifier"),
        ("smallalexnet", 32, "--image-size"),
        ("vit_b_16", 60, "60 px"),
        ("inception_v3", 32, "--image-size"),
    ],
)
def test_what_cannot_be_built(arch: str, size: int | None, says: str) -> None:
    with pytest.raises(InputError) as caught:
        build_encoder(arch, num_classes=4, image_size=size)
    message = str(caught.value)
    assert arch in message
    assert says in message
    assert "\n" not in message


def test_no_output() -> None:
    with pytest.raises(InputError, match="at least 1"):
        build_encoder("smallcnn", num_classes=0)
