"""moco-v3's transformers: their function, their start, their files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from moco.encoders import build_encoder, freeze_patches, trunk
from moco.encoders.files import load_trunk, read_encoder
from moco.encoders.networks import MOCO_V3_VITS
from moco.encoders.vit import VITS, MoCoViT, sincos_positions
from moco.errors import InputError


def small(seed: int = 0) -> MoCoViT:
    torch.manual_seed(seed)
    return MoCoViT(7, image_size=48, width=48, heads=12, depth=2)


def test_positions_are_the_papers() -> None:
    """Of patch (row, column): sin and cos of row · 10000^(-4i/d), then of the column's."""
    width, side = 16, 3
    positions = sincos_positions(side, width)
    for row in range(side):
        for column in range(side):
            angles = [[at * 10_000 ** (-4 * i / width) for i in range(width // 4)] for at in (row, column)]
            expected = [f(a) for of_axis in angles for f in (math.sin, math.cos) for a in of_axis]
            assert positions[side * row + column].tolist() == pytest.approx(expected, abs=1e-5)


def test_vit_small_has_12_heads() -> None:
    """The same tensors with timm's 6 heads are another function."""
    net = build_encoder("vit_small", 5, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    for heads, same in ((12, True), (6, False)):
        more = dict(num_heads=heads, img_size=32, num_classes=5)
        other = timm.create_model("vit_small_patch16_224", **more).eval()
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            assert torch.allclose(other(images), net(images), atol=1e-5) == same


def test_the_start_is_moco_v3s() -> None:
    net = small()
    assert not net.pos_embed.requires_grad and not net.pos_embed[0, 0].any()
    assert net.pos_embed[0, 1:].equal(sincos_positions(3, 48))
    assert 0 < net.cls_token.abs().max() < 1e-5
    bounds = {
        "patch_embed.proj": math.sqrt(6 / (3 * 16 * 16 + 48)),
        "blocks.0.attn.qkv": math.sqrt(6 / (48 + 48)),  # three matrices, not one of 144 rows
        "blocks.1.mlp.fc1": math.sqrt(6 / (48 + 192)),
    }
    for name, bound in bounds.items():
        layer = net.get_submodule(name)
        top = layer.weight.abs().max().item()  # type: ignore[union-attr, operator]
        assert 0.97 * bound < top <= bound and not layer.bias.any(), name  # type: ignore[union-attr, operator]


def test_the_projection_of_patches_can_be_frozen() -> None:
    net = small()
    freeze_patches(net, "vit_small")
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    for name in ("resnet18", "vit_conv_small"):
        with pytest.raises(InputError, match=f"which --arch {name} lacks"):
            freeze_patches(build_encoder(name, 4, image_size=32), name)
    freeze_patches(build_encoder("timm:vit_tiny_patch16_224", 4, image_size=32), "timm:vit_tiny_patch16_224")


def test_names_and_sizes() -> None:
    assert set(MOCO_V3_VITS) == set(VITS)
    with pytest.raises(InputError, match=r"vit_small cannot be built for images of 40 px.*multiple of 16"):
        build_encoder("vit_small", 4, image_size=40)
    stem = build_encoder("vit_conv_small", 4, image_size=32)
    assert len(stem.blocks) == 11 and stem.pos_embed.shape == (1, 5, 384)  # type: ignore[arg-type, union-attr]
    shapes = [tuple(layer.weight.shape) for layer in stem.patch_embed.proj if isinstance(layer, nn.Conv2d)]  # type: ignore[union-attr]
    assert shapes == [(48, 3, 3, 3), (96, 48, 3, 3), (192, 96, 3, 3), (384, 192, 3, 3), (384, 384, 1, 1)]


def test_moco_v3s_vit_small_is_read(tmp_path: Path) -> None:
    """Its file: the projector under `head`, the momentum encoder and the predictor beside it."""
    net = build_encoder("vit_small", 4, image_size=32)
    state = {f"module.base_encoder.{name}": value for name, value in net.state_dict().items() if "head." not in name}
    state |= {f"module.momentum_encoder.{name}": value + 1 for name, value in net.state_dict().items()}
    state |= {"module.base_encoder.head.0.weight": torch.zeros(8, 384), "module.predictor.0.weight": torch.zeros(4, 4)}
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {}}, tmp_path / "file")
    file = read_encoder(tmp_path / "file")
    assert file.arch == "vit_small" and file.layout == "moco-v3"
    other = build_encoder("vit_small", 4, image_size=32)
    load_trunk(other, file)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert trunk(other).eval()(images).equal(trunk(net).eval()(images))
