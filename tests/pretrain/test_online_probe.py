"""The classifier beside the encoder (`--online-probe`): what it learns, and that the encoder does not notice it."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from moco.encoders import build_encoder, feature_dim, trunk
from moco.errors import EXIT_OK, InputError
from moco.pretrain.__main__ import main
from moco.pretrain.online_probe import LR, OnlineProbe
from moco.pretrain.options import parse_pretrain
from moco.run import checkpoint
from moco.run.log import read_log
from tests.pretrain.test_state import same_bits

RUN = "--dataset digits -a smallcnn --moco-k 256 --moco-dim 16 -b 64 --lr 0.06 --moco-m 0.9 --seed 3 --knn-k 5 -j 1"


def run(folder: Path, words: str) -> dict[str, Any]:
    assert main([*shlex.split(f"{RUN} {words}"), "--output-dir", str(folder)]) == EXIT_OK
    return checkpoint.load(sorted(folder.glob("checkpoint_????.pth.tar"))[-1])


def evaluations(folder: Path) -> list[float]:
    return [record["online_top1"] for record in read_log(folder / "log.jsonl") if "online_top1" in record]


@pytest.mark.parametrize("more", ["", "--symmetric --accum-steps 2", "--moco-k 0 --loss infonce"])
def test_the_encoder_trains_as_without_it(more: str, tmp_path: Path) -> None:
    with_it = run(tmp_path / "with", f"{more} --epochs 1 --online-probe")
    without = run(tmp_path / "without", f"{more} --epochs 1")
    assert with_it["state_dict"].keys() == without["state_dict"].keys()
    assert same_bits(with_it["state_dict"], without["state_dict"])
    for mine, other in zip(with_it["optimizer"]["state"].values(), without["optimizer"]["state"].values(), strict=True):
        assert same_bits(mine, other)


def test_it_learns_and_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "--epochs 3 --eval-freq 1 --online-probe --save-every 5")
    accuracy = evaluations(tmp_path / "whole")
    assert len(accuracy) == 3 and accuracy[-1] > 25  # chance is 10, and the encoder has hardly begun
    (inside,) = (tmp_path / "whole").glob("checkpoint_0002_*.pth.tar")
    again = run(tmp_path / "again", f"--epochs 3 --eval-freq 1 --online-probe --save-every 5 --resume {inside}")
    for name in ("weight", "bias"):
        ended = [one["moco_run"]["online_probe"]["classifier"][f"1.{name}"] for one in (again, whole)]
        assert ended[0].equal(ended[1])
    assert evaluations(tmp_path / "again") == accuracy[2:]


def test_a_step_is_adams_on_the_mean_cross_entropy() -> None:
    encoder = build_encoder("smallcnn", 8)
    probe = OnlineProbe(encoder, 3)
    images = torch.rand(5, 3, 32, 32)
    encoder(images)
    features = probe.take(4)  # of four of the five images
    encoder.eval()
    assert features.shape == (4, feature_dim(encoder)) and not features.requires_grad
    labels = torch.tensor([0, 2, 1, -1])
    total = 4
    seen = (features - 0.1 * features.mean(0)) / (0.9 + 0.1 * features.var(0, correction=0) + 1e-5).sqrt()
    weight = torch.zeros(3, features.shape[1], requires_grad=True)
    F.cross_entropy(seen[:3] @ weight.t(), labels[:3], reduction="sum").div(total).backward()
    logs = probe.step(features, labels, total)
    assert weight.grad is not None
    expected = -LR / math.sqrt(feature_dim(encoder)) * weight.grad / (weight.grad.abs() + 1e-8)  # Adam's first step
    torch.testing.assert_close(probe.classifier[1].weight.detach(), expected)
    assert logs["online_loss"].item() == pytest.approx(3 / 4 * np.log(3), rel=1e-5)


def test_it_reads_what_the_projection_head_reads() -> None:
    encoder = build_encoder("smallcnn", 8, mlp=True)
    probe = OnlineProbe(encoder, 3)
    encoder.eval()
    images = torch.rand(2, 3, 32, 32)
    encoder(images)
    torch.testing.assert_close(probe.take(2), trunk(encoder)(images))


def test_features_that_are_not_finite_leave_the_classifier_whole() -> None:
    probe = OnlineProbe(build_encoder("smallcnn", 8), 3)
    width = probe.classifier[1].in_features
    probe.step(torch.full((2, width), float("nan")), torch.tensor([0, 1]), total=2)
    assert all(value.isfinite().all() for value in probe.classifier.state_dict().values())


def test_what_has_no_meaning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--compile hides them"):
        parse_pretrain([*shlex.split(RUN), "--online-probe", "--compile"])
    (tmp_path / "train").mkdir()
    for i in range(8):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "train" / f"{i}.png")
    words = f"{tmp_path} -a smallcnn --image-size 32 -b 4 --moco-k 16 --online-probe --output-dir {tmp_path / 'run'}"
    assert main(shlex.split(words)) == 2


def test_a_classifier_without_a_state_says_that_it_starts_afresh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--epochs 1")
    assert "starts afresh" not in capsys.readouterr().out
    run(tmp_path, "--epochs 2 --online-probe --resume auto")
    told = "checkpoint_0000.pth.tar holds no online classifier: that of --online-probe starts afresh"
    assert capsys.readouterr().out.count(told) == 1
    run(tmp_path, "--epochs 3 --online-probe --resume auto")
    assert "starts afresh" not in capsys.readouterr().out


def test_a_classifier_of_other_classes_is_refused() -> None:
    encoder = build_encoder("smallcnn", 8)
    with pytest.raises(InputError, match="other features or classes"):
        OnlineProbe(encoder, 4).load_state_dict(OnlineProbe(encoder, 3).state_dict())
