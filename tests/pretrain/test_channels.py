"""Runs on images of one and of five channels: trained, killed, resumed to the bit, and read by every other command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.other_channels import write
from moco.data.source import ArraySource
from moco.data.stats import main as stats
from moco.errors import EXIT_INPUT, EXIT_OK
from moco.evaluate.__main__ import main as evaluate
from moco.pretrain.options import parse_pretrain
from moco.probe.__main__ import main as probe
from moco.report.neighbours import _shown, grid
from moco.run import checkpoint
from moco.run.log import read_log
from tests.reliability.runs import Launcher, assert_same_run, fault

RUN = shlex.split(
    "-a smallcnn --moco-dim 32 --moco-k 512 -b 96 --epochs 3 --lr 0.06 --moco-m 0.99 --loss align-uniform --seed 1"
    " --deterministic -j 1 -p 1 --save-every 10 --keep-last 2 --no-tensorboard --recipe digits --image-size 16"
)
FIVE = ["--channels", "5", "--value-range", "0,4095"]
STATISTICS = ["--mean", "0.3,0.03,0.7,0.3,0.3", "--std", "0.37,0.04,0.37,0.3,0.37"]


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as arrays of five channels: 857 to train on, 143 to validate."""
    folder = tmp_path_factory.mktemp("five")
    write(folder, 1000)
    return folder


@pytest.fixture(scope="module")
def finished(launcher: Launcher, five: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on `five`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    argv = [*RUN, *FIVE, *STATISTICS, "--eval-freq", "3", str(five)]
    ended = launcher.run(argv, folder)
    assert ended.codes == [EXIT_OK], ended.output
    assert ended.output.count("hue, saturation and grey of --recipe digits are for RGB, left out") == 1
    return folder


def last(folder: Path) -> str:
    return str(checkpoint.checkpoints(folder)[-1])


def check_trained(folder: Path) -> None:
    losses = [record["loss"] for record in read_log(folder / "log.jsonl") if record["kind"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[7:12]) - 0.3, losses


@pytest.mark.parametrize("channels", [1, 5])
def test_a_killed_run_goes_on_with_the_same_bits(
    channels: int, launcher: Launcher, five: Path, finished: Path, tmp_path: Path
) -> None:
    if channels == 5:
        argv = [*RUN, *FIVE, *STATISTICS, "--eval-freq", "3", str(five)]
        whole = finished
    else:
        argv = [*RUN, *shlex.split("--dataset digits --channels 1 --eval-freq 0 -b 160")]
        whole = tmp_path / "whole"
        assert launcher.run(argv, whole).codes == [EXIT_OK]
    check_trained(whole)
    struck = {0: [fault("moco.pretrain.step:TrainingStep.__call__", 18, "kill")]}
    assert launcher.run(argv, tmp_path / "cut", faults=struck).codes == [-9]
    assert checkpoint.checkpoints(tmp_path / "cut")
    ended = launcher.run([*argv, "--resume", "auto"], tmp_path / "cut")
    assert ended.codes == [EXIT_OK] and "resuming from" in ended.output
    assert_same_run(tmp_path / "cut", whole)
    weight = checkpoint.load(last(whole))["state_dict"]["module.encoder_q.features.0.weight"]
    assert weight.shape[1] == channels


def test_the_probe_reads_the_images_from_the_checkpoint(
    five: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(five), "--pretrained", last(finished), "--cached", "--folds", "2", "--seed", "0"]
    with torch.random.fork_rng():
        assert probe([*words, "--output-dir", str(tmp_path / "probe")]) == EXIT_OK
    found = json.loads((tmp_path / "probe" / "lincls.json").read_text())
    told = [found["options"][name] for name in ("channels", "value_range", "mean", "std")]
    assert told == [5, "0,4095", STATISTICS[1], STATISTICS[3]]
    assert found["top1"] > 80
    evaluated = ["--resume", str(tmp_path / "probe" / "checkpoint.pth.tar"), "--evaluate", str(five)]
    assert probe(evaluated) == EXIT_OK
    assert f"top-1 {found['top1']:.2f}" in capsys.readouterr().out
    assert probe([*words, "--channels", "4", "--output-dir", str(tmp_path / "four")]) == EXIT_INPUT
    assert "is [32, 5, 3, 3] in the file and [32, 4, 3, 3] in the encoder" in capsys.readouterr().err


def test_evaluate_and_report_read_them_too(five: Path, finished: Path, tmp_path: Path) -> None:
    assert evaluate([last(finished), str(five), "--json", str(tmp_path / "m.json")]) == EXIT_OK
    measures = json.loads((tmp_path / "m.json").read_text())["spaces"]["trunk"]["measures"]
    logged = [record for record in read_log(finished / "log.jsonl") if record["kind"] == "eval"][-1]
    assert measures["knn_top1"] == pytest.approx(logged["knn_top1"]) and measures["knn_top1"] > 70
    options = json.loads((finished / "options.json").read_text())
    rows = grid(Path(last(finished)), options, queries=2, count=3)
    assert len(rows) == 2 and all(one.uri.startswith("data:image/jpeg") for row in rows for one in row.nearest)


@pytest.mark.parametrize(("channels", "bands"), [(1, 1), (2, 1), (3, 3), (7, 3)])
def test_thumbnails(channels: int, bands: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first three channels as RGB; the first alone as grey."""
    shown: list[np.ndarray] = []
    fromarray = Image.fromarray
    monkeypatch.setattr(Image, "fromarray", lambda pixels: (shown.append(pixels), fromarray(pixels))[1])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 80, 80, channels)).astype(np.uint8)
    _shown(ArraySource(pixels, np.zeros(1), ["a"], "x"), 0, 1.0)
    assert np.array_equal(shown[0].reshape(80, 80, bands), pixels[0, ..., :bands])


def test_statistics_of_the_example(five: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats([str(five), *FIVE]) == EXIT_OK
    flags = shlex.split(capsys.readouterr().out.splitlines()[-1])
    options = parse_pretrain([str(five), *flags])
    assert options.channels == 5 and options.value_range == "0,4095"
    mean = [float(value) for value in (options.mean or "").split(",")]
    assert mean[0] == pytest.approx(mean[4], abs=1e-3) and mean[2] == pytest.approx(1 - mean[0], abs=0.01)


def test_without_mean_and_std_there_is_a_default_that_is_kept(five: Path) -> None:
    options = parse_pretrain([str(five), *FIVE])
    assert options.mean == options.std == "0.5,0.5,0.5,0.5,0.5"
    assert parse_pretrain([str(five)]).mean is None and parse_pretrain([str(five)]).channels == 3


def test_rgb_weights_start_a_run_of_five_channels(launcher: Launcher, five: Path, tmp_path: Path) -> None:
    rgb = shlex.split("--dataset digits --eval-freq 0 --epochs 1 -b 512")
    assert launcher.run([*RUN, *rgb], tmp_path / "rgb").codes == [EXIT_OK]
    argv = [*RUN, *FIVE, "--eval-freq", "0", "--epochs", "1", "-b", "400", str(five)]
    ended = launcher.run([*argv, "--init-from", last(tmp_path / "rgb")], tmp_path / "five")
    assert ended.codes == [EXIT_OK], ended.output
    assert "features.0.weight for 5 channels: RGB repeated, times 3/5" in ended.output


def test_a_file_of_other_channels_is_named_or_skipped(launcher: Launcher, five: Path, tmp_path: Path) -> None:
    write(tmp_path / "data", 60)
    odd = next((tmp_path / "data" / "train").rglob("*.npy"))
    np.save(odd, np.zeros((9, 9, 4), np.uint16))
    argv = [*RUN, *FIVE, "-b", "24", "--epochs", "1", "--eval-freq", "0", str(tmp_path / "data")]
    ended = launcher.run(argv, tmp_path / "run")
    assert ended.codes == [EXIT_INPUT]
    assert f"{odd.name}) cannot be read: its shape is [9, 9, 4], and --channels is 5" in ended.output
    assert "Traceback" not in ended.output
    skipped = launcher.run([*argv, "--skip-bad-images"], tmp_path / "skipped")
    assert skipped.codes == [EXIT_OK], skipped.output
