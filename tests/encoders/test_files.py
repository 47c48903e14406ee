"""Encoders out of every layout, equal to the ones put in; a trunk is loaded whole or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moco.encoders import build_encoder, trunk
from moco.encoders.files import load_trunk, read_encoder
from moco.errors import InputError
from moco.evaluate.features import eval_mode
from moco.run import checkpoint


def encoder(arch: str = "resnet18", dim: int = 5, mlp: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = build_encoder(arch, dim, mlp=mlp)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()  # statistics must travel, too
    return net


def prefixed(net: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in net.state_dict().items()}


def moco_like(net: nn.Module, module: str = "module.") -> dict[str, Any]:
    weights = prefixed(net, f"{module}encoder_q.") | prefixed(encoder(seed=9), f"{module}encoder_k.")
    weights |= {f"{module}queue": torch.randn(5, 8), f"{module}queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": weights, "optimizer": {"state": {}}}


def moco_v3(net: nn.Module) -> dict[str, Any]:
    net.fc = nn.Sequential(nn.Linear(512, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5, bias=False))
    weights = prefixed(net, "module.base_encoder.") | prefixed(encoder(seed=9), "module.momentum_encoder.")
    weights["module.predictor.0.weight"] = torch.randn(4, 4)
    return {"epoch": 100, "arch": "resnet18", "state_dict": weights, "optimizer": {}, "scaler": {}}


LAYOUTS: dict[str, Any] = {
    "MoCo": moco_like,
    "MoCo, bare": lambda net: moco_like(net, module=""),
    "moco-v3": moco_v3,
    "lincls": lambda net: {"epoch": 9, "arch": "resnet18", "state_dict": prefixed(net, "module."), "best_acc1": 50.0},
    "torchvision": lambda net: dict(net.state_dict()),
    "in 'model'": lambda net: {"model": net.state_dict()},
    "in 'state_dict'": lambda net: {"state_dict": net.state_dict()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_survive_every_layout(layout: str, tmp_path: Path) -> None:
    net, images = encoder(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), eval_mode(net):
        expected = trunk(net)(images)
    torch.save(LAYOUTS[layout](net), tmp_path / "file.pth.tar")
    file = read_encoder(tmp_path / "file.pth.tar")
    other = encoder(seed=1)
    head = other.state_dict()["fc.weight"].clone()
    loaded = load_trunk(other, file)
    with torch.no_grad(), eval_mode(other):
        torch.testing.assert_close(trunk(other)(images), expected, rtol=0, atol=0)
    assert len(loaded.matched) == len(net.state_dict()) - len(net.fc.state_dict())  # type: ignore[union-attr]
    assert loaded.skipped and all(name.startswith("fc.") for name in loaded.skipped)
    assert torch.equal(other.state_dict()["fc.weight"], head)
    if "arch" in LAYOUTS[layout](encoder()):
        assert file.arch == "resnet18"


def test_what_the_file_tells(tmp_path: Path) -> None:
    content = moco_like(encoder(mlp=True))
    content["moco_run"] = {"format": 1, "options": {"image_size": 64, "recipe": "v2"}}
    checkpoint.save(tmp_path / "checkpoint_0199.pth.tar", content)
    file = read_encoder(tmp_path / "checkpoint_0199.pth.tar")
    assert (file.arch, file.epoch, file.layout) == ("resnet18", 200, "MoCo")
    assert file.options["image_size"] == 64
    assert len(file.others) == len(encoder().state_dict()) + 2
    loaded = load_trunk(encoder(seed=1), file)
    assert sorted(loaded.skipped) == ["fc.0.bias", "fc.0.weight", "fc.2.bias", "fc.2.weight"]
    assert "4 left out (fc.0.weight" in str(loaded)


@pytest.mark.parametrize(("arch", "size"), [("timm:resnet10t", 32), ("vit_b_32", 32), ("mobilenet_v3_small", 32)])
def test_classifiers_of_other_names_are_left_out(arch: str, size: int, tmp_path: Path) -> None:
    net, other = (build_encoder(arch, dim, mlp=dim == 5, image_size=size) for dim in (5, 3))
    torch.save({"arch": arch, "state_dict": prefixed(net, "module.encoder_q.")}, tmp_path / "file")
    loaded = load_trunk(other, read_encoder(tmp_path / "file"))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad(), eval_mode(net), eval_mode(other):
        assert torch.equal(trunk(other)(images), trunk(net)(images))
    assert len(loaded.skipped) == 4


def test_old_files_without_counters(tmp_path: Path) -> None:
    state = {k: v for k, v in encoder().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    loaded = load_trunk(encoder(seed=1), read_encoder(tmp_path / "old.pth"))
    assert len(loaded.missing) == 20
    assert "20 counters" in str(loaded)


def without(net: nn.Module, name: str) -> dict[str, Tensor]:
    return {key: value for key, value in net.state_dict().items() if key != name}


@pytest.mark.parametrize(
    ("content", "arch", "says"),
    [
        (lambda: moco_like(encoder("resnet34")), "resnet18", "layer1.2.conv1.weight"),  # a subset of the file would fit
        (lambda: moco_like(encoder("resnet18")), "resnet34", "has no layer1.2.conv1.weight"),
        (lambda: moco_like(encoder("resnet18")), "resnet18_small", "conv1.weight is [64, 3, 7, 7] in the file"),
        (lambda: without(encoder(), "layer4.1.bn2.running_var"), "resnet18", "no layer4.1.bn2.running_var"),
        (lambda: {"generator.0.weight": torch.randn(3, 3)}, "resnet18", "0 of 120 tensors fit"),
    ],
)
def test_a_trunk_is_loaded_whole_or_refused(content: Any, arch: str, says: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "file")
    net = encoder(arch, seed=1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_trunk(net, read_encoder(tmp_path / "file"))
    assert says in str(caught.value)
    assert "--arch" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def broken(net: nn.Module) -> dict[str, Tensor]:
    net.layer1[0].conv1.weight.data[0, 0, 0, 0] = float("nan")  # type: ignore[index, union-attr]
    return net.state_dict()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: {"epoch": 3, "loss": [1.0, 2.0]}, "holds no weights"),
        (dict, "holds no weights"),
        (lambda: broken(encoder()), "layer1.0.conv1.weight holds numbers that are not finite"),
    ],
)
def test_files_without_a_usable_encoder(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "file")
    with pytest.raises(InputError, match=says):
        read_encoder(tmp_path / "file")


def test_moco_v3s_vit_base_is_timms(tmp_path: Path) -> None:
    torch.save(dict(moco_v3(encoder()), arch="vit_base"), tmp_path / "file")
    assert read_encoder(tmp_path / "file").arch == "timm:vit_base_patch16_224"


def test_missing_and_truncated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        read_encoder(tmp_path / "absent.pth.tar")
    checkpoint.save(tmp_path / "whole", moco_like(encoder()))
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="half"):
        read_encoder(tmp_path / "half")
