"""Every public layout of checkpoints through the commands: --pretrained, --init-from and --resume.

Each is read rightly, weight by weight, or refused in one sentence that says what to do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from moco.encoders import build_encoder
from moco.errors import EXIT_INPUT, EXIT_OK
from moco.pretrain.__main__ import main as pretrain
from moco.probe.__main__ import main as probe
from moco.run.log import read_log

DIM, K = 4, 8
NUMBERED = ("conv1", "bn1", None, None, "layer1", "layer2", "layer3", "layer4")  # torchvision's order of children


def encoder(arch: str = "smallcnn", dim: int = DIM, mlp: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = build_encoder(arch, dim, mlp=mlp)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    return net


def trunk_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in net.state_dict().items() if not name.startswith("fc.")}


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def moco(net: nn.Module, **more: Tensor) -> dict[str, Any]:
    state = with_prefix("module.encoder_q.", net.state_dict())
    key = encoder(mlp="fc.2.weight" in net.state_dict(), seed=1)
    state |= with_prefix("module.encoder_k.", key.state_dict())
    state |= {"module.queue": nn.functional.normalize(torch.randn(DIM, K), dim=0)}
    state |= {"module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    optimizer = torch.optim.SGD([*net.parameters(), *key.parameters()], 0.03, momentum=0.9)  # as MoCo's main does
    return {
        "epoch": 1,
        "arch": "smallcnn",
        "state_dict": state | with_prefix("module.", more),
        "optimizer": optimizer.state_dict(),
    }


def moco_v3(net: nn.Module) -> dict[str, Any]:
    projector = {"fc.0.weight": torch.randn(16, 128), "fc.1.running_mean": torch.randn(16)}
    state = with_prefix("module.base_encoder.", trunk_of(net) | projector)
    state |= with_prefix("module.momentum_encoder.", trunk_of(encoder(seed=1)) | projector)
    state["module.predictor.0.weight"] = torch.randn(16, 4)
    return {"epoch": 100, "arch": "smallcnn", "state_dict": state, "optimizer": {}, "scaler": {"scale": 1.0}}


def lightly(net: nn.Module) -> dict[str, Any]:
    """Lightning's file of a ResNet whose children are numbered."""
    numbers = {name: str(number) for number, name in enumerate(NUMBERED) if name}
    state = {}
    for name, value in trunk_of(net).items():
        first, _, rest = name.partition(".")
        state[f"backbone.{numbers[first]}.{rest}"] = value
        state[f"backbone_momentum.{numbers[first]}.{rest}"] = value + 1
    state["projection_head.layers.0.weight"] = torch.randn(4, 128)
    return {"epoch": 3, "global_step": 30, "pytorch-lightning_version": "2.5", "state_dict": state, "callbacks": {}}


def solo_learn(net: nn.Module) -> dict[str, Any]:
    state = with_prefix("backbone.", trunk_of(net)) | with_prefix("momentum_backbone.", trunk_of(encoder(seed=1)))
    state |= {"projector.0.weight": torch.randn(8, 128), "classifier.weight": torch.randn(10, 128)}
    state |= {"queue": torch.randn(2, DIM, K), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 400, "state_dict": state, "optimizer_states": [], "lr_schedulers": []}


def dino(net: nn.Module) -> dict[str, Any]:
    head = {"head.mlp.0.weight": torch.randn(8, 128)}
    student = with_prefix("module.", with_prefix("backbone.", trunk_of(encoder(seed=1))) | head)
    teacher = with_prefix("backbone.", trunk_of(net)) | head
    return {"student": student, "teacher": teacher, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}


LAYOUTS: dict[str, Callable[[nn.Module], dict[str, Any]]] = {
    "MoCo v1": moco,
    "align/uniform fork": lambda net: moco(net, scalar_label=torch.zeros((), dtype=torch.long)),
    "moco-v3": moco_v3,
    "lightly": lightly,
    "solo-learn": solo_learn,
    "DINO": dino,
    "mmpretrain": lambda net: {
        "meta": {"epoch": 200, "mmengine_version": "0.10"},
        "state_dict": with_prefix("backbone.", trunk_of(net)) | {"neck.fc0.weight": torch.randn(4, 128)},
    },
    "torchvision": lambda net: dict(encoder(dim=1000).state_dict()) | trunk_of(net),
    "timm": lambda net: {"arch": "smallcnn", "epoch": 7, "state_dict": dict(net.state_dict()), "metric": 70.0},
    "a compiled network": lambda net: {"model": with_prefix("_orig_mod.", net.state_dict())},
    "its own prefix": lambda net: with_prefix("online_network.encoder.", trunk_of(net)),
}
RUNS = ("MoCo v1", "align/uniform fork")  # files that hold a run to go on with


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    return folder


def words(images: Path, out: Path, more: str) -> list[str]:
    usual = "--image-size 32 --device cpu --seed 0 -j 1"
    return [str(images), "--output-dir", str(out), *usual.split(), *more.split()]


def nearly_still(epochs: int) -> str:
    """A run whose steps move no weight by more than rounding."""
    still = f"--epochs {epochs} -b 4 --moco-dim {DIM} --moco-k {K} --bn local --lr 1e-30 --wd 0"
    return f"{still} --eval-freq 0 --no-tensorboard"


def weights(path: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


def assert_trunk(found: dict[str, Tensor], prefix: str, net: nn.Module, moving: bool) -> None:
    """moving: the run has updated the BatchNorm statistics."""
    for name, value in trunk_of(net).items():
        if not (moving and ("running_" in name or name.endswith("num_batches_tracked"))):
            torch.testing.assert_close(found[prefix + name], value, rtol=0, atol=1e-20, msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = "resnet18" if layout == "lightly" else "smallcnn"
    net = encoder(arch)
    path = tmp_path / "file.pth.tar"
    torch.save(LAYOUTS[layout](net), path)

    assert probe(words(images, tmp_path / "probe", f"-a {arch} --pretrained {path} --cached --folds 2")) == EXIT_OK
    assert_trunk(weights(tmp_path / "probe/checkpoint.pth.tar"), "module.", net, moving=False)

    assert pretrain(words(images, tmp_path / "new", f"-a {arch} --init-from {path} {nearly_still(1)}")) == EXIT_OK
    assert_trunk(weights(tmp_path / "new/checkpoint_0000.pth.tar"), "module.encoder_q.", net, moving=True)

    capsys.readouterr()
    code = pretrain(words(images, tmp_path / "on", f"-a {arch} --resume {path} {nearly_still(2)}"))
    if layout in RUNS:
        assert code == EXIT_OK
        assert [record["epoch"] for record in read_log(tmp_path / "on/log.jsonl") if record["kind"] == "epoch"] == [1]
        assert_trunk(weights(tmp_path / "on/checkpoint_0001.pth.tar"), "module.encoder_q.", net, moving=True)
    else:
        assert code == EXIT_INPUT
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1 and str(path) in told[0], told
        assert "--init-from" in told[0] or "Python objects" in told[0], told


def test_moco_v2_goes_on_with_its_own_projection_head(images: Path, tmp_path: Path) -> None:
    net = encoder(mlp=True)
    path = tmp_path / "v2.pth.tar"
    torch.save(moco(net), path)
    more = f"-a smallcnn --resume {path} --mlp {nearly_still(2)}"
    assert pretrain(words(images, tmp_path / "on", more)) == EXIT_OK
    found = weights(tmp_path / "on/checkpoint_0001.pth.tar")
    for name in ("fc.0.weight", "fc.2.weight"):
        assert torch.equal(found[f"module.encoder_q.{name}"], net.state_dict()[name])


class Hidden:
    """An object of a program that is not installed here, as it stands in many Lightning files."""


@pytest.mark.parametrize("how", ["--pretrained", "--init-from", "--resume"])
def test_a_pickle_with_objects_is_refused(
    how: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.ckpt"
    torch.save({"state_dict": encoder().state_dict(), "epoch": 1, "hyper_parameters": Hidden()}, path)
    command, more = (probe, "") if how == "--pretrained" else (pretrain, nearly_still(2))
    assert command(words(images, tmp_path / "out", f"-a smallcnn {how} {path} {more}")) == EXIT_INPUT
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "Hidden" in told[0], told
