"""MoCo v3 (`--keys batch`): its Algorithm 1, its checkpoints, its runs on the digits."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moco.builder import MoCo
from moco.data.loader import Batch
from moco.distributed.global_batch import GlobalBatch
from moco.encoders import Projector, build_encoder, build_mlp
from moco.encoders.files import load_trunk, read_encoder
from moco.encoders.vit import MoCoViT
from moco.losses import BatchKeysLoss
from moco.pretrain.__main__ import main
from moco.pretrain.step import TrainingStep
from moco.run import checkpoint
from moco.run.log import read_log
from tests import oracles
from tests.pretrain.test_state import same_bits

T, M, LR = 0.4, 0.7, 0.3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.fc = nn.Sequential(nn.Linear(36, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.conv(x)).flatten(1))


def augment(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    x = crops.permute(0, 3, 1, 2).float() / 128 - 1
    return x * torch.cos(index + epoch + 2 * view).view(-1, 1, 1, 1)


def batch(number: int, n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(number)
    crops = torch.randint(0, 256, (n, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Batch(crops, torch.arange(n) + 10 * number, torch.full((n,), -1))


def test_a_step_is_algorithm_1() -> None:
    """f_k first follows f_q; the loss is ctr(q1, k2) + ctr(q2, k1), through the predictor on the queries alone."""
    torch.manual_seed(1)
    predictor = build_mlp(5, 5, Projector(2, 7, bn=True, last_bn=False))
    model = MoCo(Net(), dim=5, m=M, keys="batch", predictor=predictor, bn="local")
    optimizer = torch.optim.SGD(model.parameters(), LR, fused=True)
    step = TrainingStep(model, BatchKeysLoss(1.0, T), optimizer, augment, GlobalBatch(), symmetric=True)
    base, momentum, head = (copy.deepcopy(m) for m in (model.encoder_q, model.encoder_k, predictor))
    for number in range(3):
        data = batch(number)
        values, _ = step(data, 2, [6], measure=True)
        with torch.no_grad():
            for k, q in zip(momentum.parameters(), base.parameters(), strict=True):
                k.copy_(M * k + (1 - M) * q)
        views = [augment(data.crops[:, view], data.index, 2, view) for view in (0, 1)]
        q1, q2 = (oracles.unit_rows(head(base(view))) for view in views)
        k2, k1 = (oracles.unit_rows(momentum(view)).detach() for view in reversed(views))
        loss = oracles.moco_v3_ctr(q1, k2, T) + oracles.moco_v3_ctr(q2, k1, T)
        torch.testing.assert_close(values["loss"], loss.detach())
        weights = [*base.parameters(), *head.parameters()]
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.data -= LR * gradient
        for ours, expected in ((model.encoder_q, base), (model.encoder_k, momentum), (model.predictor, head)):
            for name, value in expected.state_dict().items():
                torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)  # type: ignore[union-attr]


# -- its checkpoints ---------------------------------------------------------------------------------------------------

COMMAND = shlex.split(
    "--dataset digits -a smallcnn --image-size 8 -b 200 --epochs 2 --seed 0 -j 1 -p 1 --moco-dim 16 --keys batch"
    " --symmetric --predictor resnet --moco-mlp-layers 2 --moco-mlp-dim 24 --moco-mlp-bn --moco-t 1 --optimizer lars"
    " --lr 2 --lr-per-step --cos --moco-m-cos --moco-m 0.9 --eval-freq 0 --no-tensorboard --device cpu --save-every 5"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v3") / "run"
    assert main([*COMMAND, "--output-dir", str(folder)]) == 0
    return folder


def test_a_checkpoint_has_moco_v3s_names(run: Path) -> None:
    state = checkpoint.load(run / "checkpoint_0001.pth.tar")
    names = set(state["state_dict"])
    trunk = {name for name in build_encoder("smallcnn", 4).state_dict() if not name.startswith("fc.")}
    statistics = {f"{i}.{name}" for i in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")}
    projector = {f"fc.{name}" for name in {"0.weight", "1.weight", "1.bias", "3.weight"} | statistics}
    predictor = {"0.weight", "1.weight", "1.bias", "3.weight"} | {name for name in statistics if name[0] == "1"}
    expected = {f"module.{e}_encoder.{name}" for e in ("base", "momentum") for name in trunk | projector}
    assert names == expected | {f"module.predictor.{name}" for name in predictor}
    assert state["arch"] == "smallcnn" and state["epoch"] == 2
    file = read_encoder(run / "checkpoint_0001.pth.tar")
    assert file.layout == "moco-v3" and file.arch == "smallcnn"
    encoder = build_encoder("smallcnn", 4)
    load_trunk(encoder, file)
    weight = state["state_dict"]["module.base_encoder.features.0.weight"]
    assert encoder.state_dict()["features.0.weight"].equal(weight)


def test_a_run_cut_inside_an_epoch_ends_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    inside = next(path for path in checkpoint.checkpoints(run) if checkpoint.position(path) == (1, 3))
    assert main([*COMMAND, "--output-dir", str(tmp_path / "cut"), "--resume", str(inside)]) == 0
    whole, cut = (checkpoint.load(path / "checkpoint_0001.pth.tar") for path in (run, tmp_path / "cut"))
    assert same_bits(whole["state_dict"], cut["state_dict"])
    for state, other in zip(whole["optimizer"]["state"].values(), cut["optimizer"]["state"].values(), strict=True):
        assert same_bits(state, other)


def test_a_file_of_moco_v3s_own_script_is_resumed(run: Path, tmp_path: Path) -> None:
    """It lacks our additions, and its LARS calls the trust coefficient otherwise; `mu` and the order are the same."""
    state = checkpoint.load(run / "checkpoint_0000.pth.tar")
    state.pop("moco_run")
    state["scaler"] = {"scale": 65536.0}
    for group in state["optimizer"]["param_groups"]:
        group["trust_coefficient"] = group.pop("trust")
    torch.save(state, tmp_path / "theirs.pth.tar")
    words = ["--resume", str(tmp_path / "theirs.pth.tar"), "--output-dir", str(tmp_path / "run")]
    assert main([*COMMAND, *words]) == 0
    log, whole = (
        [r["loss"] for r in read_log(path / "log.jsonl") if r["kind"] == "train"] for path in (tmp_path / "run", run)
    )
    assert log == whole[7:]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--moco-k 8 --symmetric", "trained with keys from the batch: pass --keys batch to resume it"),
        ("--keys batch --predictor vit", "--predictor?): 3 entries differ, the first is predictor.4."),
    ],
)
def test_another_models_checkpoint_is_refused(
    words: str, told: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--dataset digits -a smallcnn --image-size 8 --moco-dim 16 --moco-mlp-layers 2 --moco-mlp-dim 24"
    more = ["--moco-mlp-bn", "--resume", str(run), "--output-dir", str(tmp_path / "run"), "--device", "cpu"]
    more[2] += "/checkpoint_0000.pth.tar"
    assert main([*small.split(), *words.split(), *more]) == 2
    assert told in capsys.readouterr().err


# -- it learns ---------------------------------------------------------------------------------------------------------


def tiny_vit(num_classes: int) -> nn.Module:
    """For the digits at their own 8 pixels: 16 patches, 2 blocks."""
    return MoCoViT(num_classes, image_size=8, width=64, heads=4, depth=2, patch=2)


V3 = "--dataset digits --image-size 8 -b 64 --seed 0 -j 1 --keys batch --symmetric --lr-per-step --cos"
V3 += " --moco-m-cos --moco-mlp-bn --moco-mlp-dim 256 --moco-dim 64 --no-tensorboard --device cpu --bn local"
V3 += " --moco-t 0.2 --moco-m 0.95 --warmup-epochs 1"
FAMILIES = {
    "resnet": "-a smallcnn --predictor resnet --moco-mlp-layers 2 --optimizer adamw --lr 3e-3 --wd 1e-6 --epochs 16",
    "vit": "-a tests.pretrain.test_v3:tiny_vit --predictor vit --moco-mlp-layers 3 --optimizer adamw --lr 1e-3 --wd 0.1"
    " --epochs 5 --stop-grad-conv1",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_beats_the_untrained_encoder(family: str, tmp_path: Path) -> None:
    def knn(*more: str) -> float:
        folder = tmp_path / str(len(more))
        words = [*V3.split(), *FAMILIES[family].split(), "--eval-freq", "50", "--output-dir", str(folder), *more]
        assert main(words) == 0
        return next(r["knn_top1"] for r in reversed(read_log(folder / "log.jsonl")) if r["kind"] == "eval")

    trained = knn()
    untrained = knn("--lr", "1e-12", "--epochs", "1", "--warmup-epochs", "0")
    assert trained > untrained + {"resnet": 2, "vit": 5}[family], (untrained, trained)


def test_stop_grad_conv1_keeps_the_projection_of_patches() -> None:
    words: Any = ["--stop-grad-conv1", "-a", "smallcnn", "--dataset", "digits"]
    assert main([*words, "--output-dir", "unused"]) == 2
