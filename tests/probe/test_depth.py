"""The depth probe: its network, loss and errors against the definitions; its runs, which go on to the same bits."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from moco.data.depth import open_depth
from moco.data.depth_crops import DepthLoader, depth_of
from moco.data.sampler import Sampler
from moco.encoders import SmallAlexNet, build_encoder
from moco.errors import EXIT_INPUT, EXIT_NUMERICS, InputError
from moco.evaluate.layers import FeatureMaps, Layers
from moco.metrics.depth import depth_errors
from moco.pretrain.__main__ import main as pretrain
from moco.probe.depth.__main__ import main
from moco.probe.depth.options import parse_depth
from moco.probe.depth.predictor import DepthPredictor, known_mse
from moco.run import checkpoint
from moco.run.log import read_log
from moco.schedules import learning_rate
from tests.data.depth_material import write_pairs

# -- definitions -------------------------------------------------------------------------------------------------------


def test_the_error_counts_known_pixels_alone() -> None:
    """Value and gradient of a loop in float64."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    truth = torch.rand(2, 3, 3, generator=generator, dtype=torch.float64) + 0.5
    truth[0, :2] = 0
    known = [(i, y, x) for i in range(2) for y in range(3) for x in range(3) if truth[i, y, x] > 0]
    expected = sum((predicted[at] - truth[at]) ** 2 for at in known) / len(known)
    loss = known_mse(predicted, truth)
    torch.testing.assert_close(loss, expected)
    gradient = torch.autograd.grad(loss, predicted)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, predicted)[0])
    assert len(known) == 12 and not gradient[0, :2].any()
    nothing = known_mse(predicted, torch.zeros_like(truth))
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, predicted)[0].any()


def test_the_errors_of_five_pixels() -> None:
    truth = torch.tensor([2.0, 4.0, 1.0, 0.0, 2.0])
    predicted = torch.tensor([2.4, 5.1, 0.7, 9.0, -1.0])  # ratios 1.2, 1.275, 1.43, not counted, beyond any
    squares = [0.4**2, 1.1**2, 0.3**2, 3.0**2]
    errors = depth_errors(predicted, truth)
    assert errors["depth_mse"] == pytest.approx(sum(squares) / 4, rel=1e-6)
    assert errors["depth_rmse"] == pytest.approx(math.sqrt(sum(squares) / 4), rel=1e-6)
    assert errors["depth_abs_rel"] == pytest.approx((0.2 + 0.275 + 0.3 + 1.5) / 4, rel=1e-6)
    assert errors["depth_delta1"] == 25
    with pytest.raises(InputError, match="no pixel of these images has a depth"):
        depth_errors(predicted, torch.zeros(5))


@pytest.mark.parametrize(
    ("layer", "channels", "side", "widths"), [("conv4", 384, 15, [192, 96]), ("conv5", 192, 7, [96, 48, 24])]
)
def test_the_published_predictor(layer: str, channels: int, side: int, widths: list[int]) -> None:
    """n x [ConvTranspose 3x3, stride 2 -> BatchNorm -> ReLU], each doubling and halving; then 3x3 to one channel."""
    maps = FeatureMaps(build_encoder("smallalexnet", 1, image_size=64), layer, 64)
    assert (maps.channels, maps.side) == (channels, side)
    predictor = DepthPredictor(channels, side, 64)
    *blocks, last = predictor.layers
    sizes = [channels, *widths]
    assert [type(block) for block in blocks] == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU] * len(widths)
    for number, block in enumerate(blocks[::3]):
        assert isinstance(block, nn.ConvTranspose2d)
        assert (block.in_channels, block.out_channels) == (sizes[number], sizes[number + 1])
        assert (block.kernel_size, block.stride, block.padding) == ((3, 3), (2, 2), (1, 1))
        assert block.output_padding == (1, 1)
    assert isinstance(last, nn.Conv2d) and (last.in_channels, last.out_channels, last.kernel_size) == (
        widths[-1], 1, (3, 3),
    )  # fmt: skip
    assert predictor.layers(torch.zeros(1, channels, side, side)).shape[2] == side * 2 ** len(widths)
    assert predictor(torch.zeros(2, channels, side, side)).shape == (2, 64, 64)


def test_the_published_settings() -> None:
    """Adam (.5, .999), batch 128, .003 x .2 at 70, 90, 100 and 110 of 120 epochs."""
    o = parse_depth(["somewhere"])
    assert (o.epochs, o.batch_size, o.adam_betas, o.features_from) == (120, 128, [0.5, 0.999], "conv5")
    for epoch in range(120):
        expected = 0.003 * 0.2 ** sum(epoch >= m for m in (70, 90, 100, 110))
        ours = learning_rate(epoch, o.lr, o.epochs, o.schedule, drop=o.lr_drop)
        assert ours == pytest.approx(expected, rel=1e-9)


def test_maps_are_the_layers_features() -> None:
    torch.manual_seed(0)
    encoder, images = build_encoder("smallalexnet", 4, image_size=64).eval(), torch.randn(2, 3, 64, 64)
    assert isinstance(encoder, SmallAlexNet)
    with torch.no_grad():
        for name in ("conv3", "blocks.4"):
            flat, maps = Layers(encoder, [name], 64)(images), FeatureMaps(encoder, name, 64)(images)
            assert torch.equal(maps.flatten(1), flat)
    resnet = build_encoder("resnet18", 4, image_size=64)
    assert (FeatureMaps(resnet, "layer3", 64).channels, FeatureMaps(resnet, "layer3", 64).side) == (256, 4)
    for name, said in (
        ("trunk", "--features-from trunk is one vector for an image"), ("output", "is one vector for an image"),
        ("fc6", r"--features-from fc6 gives \[4096\] for an image"), ("conv9", "has no such layer"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            FeatureMaps(encoder, name, 64)


# -- runs --------------------------------------------------------------------------------------------------------------

WORDS = (
    "-a smallcnn --features-from features.5 --image-size 16 -b 4 --epochs 6 --schedule 4 --lr 0.05 --seed 3 -j 1"
    " --device cpu --deterministic"
)
SMALL = WORDS.split()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("depth") / "pairs"
    write_pairs(folder / "train", 9, 0)
    write_pairs(folder / "val", 3, 1)
    return folder


@pytest.fixture(scope="module")
def whole(pairs: Path) -> Path:
    folder = pairs.parent / "whole"
    assert main([str(pairs), *SMALL, "--output-dir", str(folder)]) == 0
    return folder


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if name != "timing"}
        for record in read_log(folder / "log.jsonl") if record["kind"] != "start"
    ]  # fmt: skip


def test_it_learns_and_leaves_what_a_probe_leaves(whole: Path) -> None:
    log, result = read_log(whole / "log.jsonl"), json.loads((whole / "depth.json").read_text())
    evals = [record for record in log if record["kind"] == "eval"]
    mses = [record["depth_mse"] for record in evals]
    assert [record["epoch"] for record in evals] == list(range(6)) and mses[-1] < mses[0] / 2
    assert result["depth_mse"] == mses[-1] and result["best_mse"] == min(mses)
    assert result["best_epoch"] == mses.index(min(mses)) + 1 and result["images"] == [9, 3]
    assert result["constant"]["depth_mse"] > 0 and {"depth_rmse", "depth_abs_rel", "depth_delta1"} <= result.keys()
    steps = [record for record in log if record["kind"] == "train"]
    assert [record["lr"] for record in steps] == pytest.approx([0.05] * 4 + [0.01] * 2)
    last, best = (checkpoint.load(whole / f"{name}.pth.tar") for name in ("checkpoint", "model_best"))
    assert (last["epoch"], best["epoch"]) == (6, result["best_epoch"])
    torch.manual_seed(3)
    fresh = build_encoder("smallcnn", 1, image_size=16).state_dict()
    kept = {name.removeprefix("module."): value for name, value in last["state_dict"].items()}
    assert kept.keys() == {name for name in fresh if not name.startswith("fc.")}
    frozen = [name for name in kept if "running" not in name and "num_batches" not in name]
    assert all(kept[name].equal(fresh[name]) for name in frozen), "the encoder was trained"
    with Image.open(whole / "predictions.png") as grid:
        assert grid.size == (3 * 16, 3 * 16) and grid.mode == "RGB"


def central_depth(folder: Path, split: str, count: int) -> torch.Tensor:
    loader = DepthLoader(
        open_depth(str(folder), split), Sampler(count, count, 0, shuffle=False), size=16, eval_crop=64 / 70, workers=1
    )
    return depth_of(next(loader.epoch(0)).crops)


def test_the_number_beside_it_and_the_picture(pairs: Path, whole: Path) -> None:
    """The training images' mean depth as a prediction; rows of image, truth and prediction, none of it black."""
    train, val = central_depth(pairs, "train", 9), central_depth(pairs, "val", 3)
    known = val > 0
    assert 0 < (~known).sum() < 100
    constant = json.loads((whole / "depth.json").read_text())["constant"]
    assert constant["depth_mse"] == pytest.approx(
        (train[train > 0].mean() - val[known]).square().mean().item(), rel=1e-5
    )
    grid = torch.from_numpy(np.array(Image.open(whole / "predictions.png"))).view(3, 16, 3, 16, 3)
    true, predicted = grid[:, :, 1, :, 0], grid[:, :, 2, :, 0]
    torch.testing.assert_close(true, ((255 - 235 * val / val.max()) * known).round().byte(), rtol=0, atol=1)
    assert not true[~known].any() and predicted.min() >= 20


@pytest.mark.parametrize(("split", "said"), [("train", "training images has a depth"), ("val", "these images has a")])
def test_data_without_any_depth_is_refused_before_training(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, said: str
) -> None:
    copy = shutil.copytree(pairs, tmp_path / "none")
    for path in (copy / split).glob("*.depth.png"):
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(path)
    assert said in refused(capsys, EXIT_INPUT, str(copy), *SMALL, "--output-dir", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "checkpoint.pth.tar").exists()


def test_a_run_that_was_cut_goes_on_with_the_same_bits(pairs: Path, whole: Path, tmp_path: Path) -> None:
    """Predictor, BatchNorm, Adam's means, order, crops, flips, best epoch and log."""
    begin = [str(pairs), *SMALL, "--output-dir", str(tmp_path / "cut")]
    assert main([*begin, "--epochs", "3"]) == 0
    assert main([*begin, "--resume", "auto"]) == 0
    for name in ("checkpoint", "model_best"):
        ours, theirs = (checkpoint.load(folder / f"{name}.pth.tar") for folder in (whole, tmp_path / "cut"))
        assert ours["epoch"] == theirs["epoch"] and ours["moco_depth"]["best"] == theirs["moco_depth"]["best"]
        for a, b in (
            (ours["moco_depth"]["predictor"], theirs["moco_depth"]["predictor"]),
            *((ours["optimizer"]["state"][i], theirs["optimizer"]["state"][i]) for i in ours["optimizer"]["state"]),
        ):
            assert all(a[key].equal(b[key]) for key in a)
    assert without_times(whole) == without_times(tmp_path / "cut")
    assert (whole / "predictions.png").read_bytes() == (tmp_path / "cut" / "predictions.png").read_bytes()


def test_it_measures_a_predictor_again(pairs: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the number of the log; and --pretrained reads the encoder of the same file."""
    best = str(whole / "model_best.pth.tar")
    words = [str(pairs), "--evaluate", "--resume", best, "-j", "1", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"MSE {json.loads((whole / 'depth.json').read_text())['best_mse']:.4f} m²" in said and "(3 images)" in said


def test_an_encoder_is_pretrained_on_the_colours_and_probed(pairs: Path, tmp_path: Path, capfd: Any) -> None:
    run = tmp_path / "run"
    words = "--dataset nyu-depth -a smallcnn --image-size 16 -b 4 --epochs 1 --moco-k 16 --moco-dim 8 --bn local"
    ran = [*words.split(), "--seed", "0", "-j", "1", "--device", "cpu", "--output-dir", str(run)]
    assert pretrain([str(pairs), *ran]) == 0
    assert f"the depth probe: python -m moco.probe.depth --pretrained {run}/checkpoint_0000" in capfd.readouterr().out
    evals = [record for record in read_log(run / "log.jsonl") if record["kind"] == "eval"]
    assert "val_uniformity" in evals[-1] and "knn_top1" not in evals[-1]
    probed = [str(pairs), *SMALL[2:], "--epochs", "1", "--pretrained", str(run / "checkpoint_0000.pth.tar")]
    assert main([*probed, "--output-dir", str(tmp_path / "probe")]) == 0
    kept = checkpoint.load(tmp_path / "probe" / "checkpoint.pth.tar")["state_dict"]
    trained = checkpoint.load(run / "checkpoint_0000.pth.tar")["state_dict"]
    assert all(value.equal(trained[name.replace("module.", "module.encoder_q.")]) for name, value in kept.items())


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    assert main(list(words)) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_what_cannot_be_gone_on_with(
    pairs: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = (str(pairs), *SMALL)
    assert "already holds a predictor: pass --resume auto" in refused(
        capsys, EXIT_INPUT, *begin, "--output-dir", str(whole)
    )
    copy = shutil.copytree(whole, tmp_path / "copy")
    auto = ("--output-dir", str(copy), "--resume", "auto")
    assert "was trained with --features-from features.5" in refused(
        capsys, EXIT_INPUT, *begin, *auto, "--features-from", "features.8"
    )
    assert "was trained with --image-size 16" in refused(capsys, EXIT_INPUT, *begin, *auto, "--image-size", "32")
    assert "was trained with --seed 3" in refused(capsys, EXIT_INPUT, *begin, *auto, "--seed", "4")
    state = checkpoint.load(copy / "checkpoint.pth.tar")
    del state["moco_depth"]["predictor"]["layers.0.weight"]
    checkpoint.save(copy / "checkpoint.pth.tar", state)
    assert "does not fit the predictor of its options" in refused(capsys, EXIT_INPUT, *begin, *auto)
    torch.save({"arch": "smallcnn", "state_dict": build_encoder("smallcnn", 1).state_dict()}, tmp_path / "e.pth.tar")
    assert ", not a depth predictor: pass it as --pretrained" in refused(
        capsys, EXIT_INPUT, *begin, "--output-dir", str(tmp_path / "x"), "--resume", str(tmp_path / "e.pth.tar")
    )
    wild = ("--output-dir", str(tmp_path / "wild"), "--lr", "1e30", "--epochs", "5")
    assert "not finite after epoch" in refused(capsys, EXIT_NUMERICS, *begin, *wild)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "takes one process: start it without torchrun" in refused(capsys, EXIT_INPUT, *begin)
