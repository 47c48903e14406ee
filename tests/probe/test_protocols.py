"""main_lincls.py's other protocols end to end on made-up images: sweep, cached, layers, few labels, fine-tuning."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from moco.encoders import build_encoder, trunk
from moco.encoders.files import read_encoder
from moco.errors import EXIT_INPUT, EXIT_OK
from moco.export.__main__ import prepare
from moco.probe import __main__ as main_lincls, protocols
from moco.run.lock import RunLock
from moco.run.log import read_log
from moco.run.options import DataOptions
from tests.probe.test_main import (
    CLASSES,
    ROOT,
    arguments,
    images,
    loaded,
    pretrained,
    pretrained_state,
    write_images,
)

__all__ = ["images", "pretrained"]  # fixtures
SWEEP = dict(sweep=True, held_out=0.3, lr=None, sweep_lrs="2 0.02", sweep_wds="0 0.01")


def words_of(data: Path, **flags: Any) -> list[str]:
    """`arguments`, with flags that take several words, without those that a solved classifier does not read."""
    if flags.get("cached") and not flags.get("sweep"):
        flags = dict.fromkeys(("lr", "epochs", "schedule")) | flags
    return [part for word in arguments(data, **flags) for part in (word.split() if word[0].isdigit() else [word])]


def run(data: Path, out: Path, **flags: Any) -> dict[str, Any]:
    assert main_lincls.main(words_of(data, output_dir=out, **flags)) == EXIT_OK
    return json.loads((out / "lincls.json").read_text())


def evaluated(data: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main_lincls.main(arguments(data, resume=path, evaluate=True)) == EXIT_OK
    return capsys.readouterr().out


def test_a_sweep_chooses_on_held_out_training_images(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(images, tmp_path / "out", pretrained=pretrained, **SWEEP)
    rows = found["sweep"]
    assert [(row["lr"], row["weight_decay"]) for row in rows] == [(2, 0), (2, 0.01), (0.02, 0), (0.02, 0.01)]
    best = max(rows, key=lambda row: row["held_out_top1"])
    assert (found["lr"], found["weight_decay"]) == (best["lr"], best["weight_decay"]) == (2, 0)
    assert rows[0]["held_out_top1"] > rows[2]["held_out_top1"]
    assert (found["protocol"], found["images"]) == ("sweep", [21, 9])
    records = read_log(tmp_path / "out/log.jsonl")
    evals = [record for record in records if record["kind"] == "eval"]
    assert evals[-1]["val_acc1"] == found["top1"]
    assert evals[found["best_epoch"] - 1]["val_acc1"] == found["best_top1"]
    first = max(evals, key=lambda record: record["held_out_acc1"])
    assert first["epoch"] + 1 == found["best_epoch"]
    assert f"top-1 {found['top1']:.2f}" in evaluated(images, tmp_path / "out/checkpoint.pth.tar", capsys)

    # the validation images have no say: with all their labels wrong, the same is chosen
    other = tmp_path / "images"
    shutil.copytree(images, other)
    for name, new in zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True):
        shutil.copytree(images / "val" / name, other / "val" / new, dirs_exist_ok=True)
        for path in (images / "val" / new).iterdir():
            if not (images / "val" / name / path.name).exists():
                (other / "val" / new / path.name).unlink()
    wrong = run(other, tmp_path / "wrong", pretrained=pretrained, **SWEEP)
    assert wrong["top1"] < found["top1"]
    assert wrong["sweep"] == rows
    a, b = (loaded(tmp_path / name / "model_best.pth.tar")["state_dict"] for name in ("out", "wrong"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_classifier_of_a_sweep_is_that_of_a_sweep_of_one(images: Path, pretrained: Path, tmp_path: Path) -> None:
    many = run(images, tmp_path / "many", pretrained=pretrained, **SWEEP)
    one = run(images, tmp_path / "one", pretrained=pretrained, **{**SWEEP, "sweep_lrs": "2", "sweep_wds": "0"})
    assert many["sweep"][0] == one["sweep"][0]
    a, b = (loaded(tmp_path / name / "checkpoint.pth.tar")["state_dict"] for name in ("many", "one"))
    torch.testing.assert_close(a["module.fc.weight"], b["module.fc.weight"])


@pytest.mark.parametrize("kind", ["sweep", "cached sweep", "finetune", "output"])
def test_cut_and_resumed(kind: str, images: Path, pretrained: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "sweep": SWEEP,
        "cached sweep": SWEEP | {"cached": True},
        "finetune": dict(finetune=True, lr=None, trunk_lr=0.1, head_lr=1),
        "output": dict(features_from="output"),
    }[kind]
    whole = run(images, tmp_path / "whole", pretrained=pretrained, **flags)
    run(images, tmp_path / "cut", pretrained=pretrained, **flags, epochs=2)
    rest = run(images, tmp_path / "cut", resume="auto", **{**flags, "seed": None})
    assert {k: v for k, v in whole.items() if k in ("top1", "best_top1", "best_epoch", "sweep", "lr")} == {
        k: v for k, v in rest.items() if k in ("top1", "best_top1", "best_epoch", "sweep", "lr")
    }
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        a, b = (loaded(tmp_path / folder / name) for folder in ("whole", "cut"))
        assert a["state_dict"].keys() == b["state_dict"].keys()
        assert all(torch.equal(value, b["state_dict"][key]) for key, value in a["state_dict"].items())
    ours, theirs = a["moco_lincls"], b["moco_lincls"]
    assert ours.keys() == theirs.keys()
    for key in ("classifier", "classifiers"):
        assert all(torch.equal(value, theirs[key][name]) for name, value in ours.get(key, {}).items())


@pytest.mark.slow
def test_two_ranks_sweep_as_one(images: Path, pretrained: Path, tmp_path: Path) -> None:
    one = run(images, tmp_path / "one", pretrained=pretrained, **SWEEP)
    words = words_of(images, pretrained=pretrained, output_dir=tmp_path / "two", **SWEEP)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, "main_lincls.py", *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two/lincls.json").read_text())
    assert (two["world_size"], two["sweep"], two["top1"]) == (2, one["sweep"], one["top1"])
    a, b = (loaded(tmp_path / name / "checkpoint.pth.tar")["moco_lincls"]["classifiers"] for name in ("one", "two"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=1e-5, rtol=1e-5)


def test_cached_logistic_regression(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(images, tmp_path / "out", pretrained=pretrained, cached=True)
    assert found["protocol"] == "cached"
    assert found["top1"] == found["best_top1"] > 60
    assert found["knn5_top1"] > 60
    assert 0 <= found["cv_top1"] <= 100 and found["cv_top1_std"] >= 0
    assert found["held_out_top1"].keys() == {"1000", "100", "10", "1", "0.1"}
    assert f"top-1 {found['top1']:.2f}" in evaluated(images, tmp_path / "out/checkpoint.pth.tar", capsys)
    assert prepare(read_encoder(tmp_path / "out/model_best.pth.tar")).classes == list(CLASSES)
    again = run(images, tmp_path / "out", resume="auto", cached=True)  # a job that was requeued
    same = ("top1", "penalty", "cv_top1", "knn5_top1")
    assert [again[name] for name in same] == [found[name] for name in same]


def test_the_outputs_are_classified_as_the_loss_sees_them(
    images: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, torch.Tensor] = {}
    solve = protocols.solve
    monkeypatch.setattr(protocols, "solve", lambda x, *rest: (seen.update(x=x), solve(x, *rest))[1])
    found = run(images, tmp_path / "out", pretrained=pretrained, cached=True, features_from="output")
    monkeypatch.undo()
    network = build_encoder("smallcnn", 6).eval()
    network.load_state_dict(pretrained_state())
    frozen: list[torch.Tensor] = []
    run(images, tmp_path / "trunk", pretrained=pretrained, cached=True)
    monkeypatch.setattr(protocols, "solve", lambda x, *rest: (frozen.append(x), solve(x, *rest))[1])
    run(images, tmp_path / "again", pretrained=pretrained, cached=True)
    with torch.no_grad():
        torch.testing.assert_close(seen["x"], normalize(network.fc(frozen[0]), dim=1))  # type: ignore[operator]
    path = tmp_path / "out/checkpoint.pth.tar"
    state = loaded(path)
    assert torch.equal(state["state_dict"]["module.fc.weight"], pretrained_state()["fc.weight"])  # the projection
    assert state["moco_lincls"]["classifier"]["weight"].shape == (3, 6)
    assert f"top-1 {found['top1']:.2f}" in evaluated(images, path, capsys)
    assert prepare(read_encoder(path)).classes is None  # its head gives no class scores


def test_a_layer_is_classified(images: Path, pretrained: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "out", pretrained=pretrained, features_from="features.2", epochs=1)
    state = loaded(tmp_path / "out/checkpoint.pth.tar")
    assert state["moco_lincls"]["classifier"]["weight"].shape == (3, 32 * 4 * 4)
    assert not [name for name in state["state_dict"] if name.startswith("module.fc")]
    before = pretrained_state()
    assert all(torch.equal(value, before[name.removeprefix("module.")]) for name, value in state["state_dict"].items())


def test_fine_tuning_trains_the_trunk_at_its_own_rate(images: Path, pretrained: Path, tmp_path: Path) -> None:
    """One step of plain gradient descent: a change in proportion to each learning rate, and statistics that move."""
    common: dict[str, Any] = dict(pretrained=pretrained, finetune=True, lr=None, momentum=0, batch_size=21, epochs=1)
    before, moved = pretrained_state(), {}
    for name, rates in (("a", (0.1, 1)), ("b", (0.2, 1)), ("c", (0.1, 2))):
        run(images, tmp_path / name, **common, trunk_lr=rates[0], head_lr=rates[1])
        state = loaded(tmp_path / name / "checkpoint.pth.tar")["state_dict"]
        moved[name] = state["module.features.0.weight"] - before["features.0.weight"], state["module.fc.bias"]
    trunk_a, head_a = moved["a"]
    assert trunk_a.abs().max() > 1e-6
    torch.testing.assert_close(moved["b"][0], 2 * trunk_a, atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(moved["b"][1], head_a)
    torch.testing.assert_close(moved["c"][0], trunk_a)
    torch.testing.assert_close(moved["c"][1], 2 * head_a)
    assert not torch.equal(state["module.features.1.running_mean"], before["features.1.running_mean"])
    assert state["module.features.1.num_batches_tracked"] == before["features.1.num_batches_tracked"] + 1


def test_a_fine_tuned_network_is_evaluated_as_it_is(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(images, tmp_path / "out", pretrained=pretrained, finetune=True, lr=None, trunk_lr=1, head_lr=3)
    path = tmp_path / "out/checkpoint.pth.tar"
    assert f"top-1 {found['top1']:.2f}" in evaluated(images, path, capsys)
    assert found["protocol"] == "finetune"
    network = prepare(read_encoder(path)).network
    state = loaded(path)["state_dict"]
    assert all(torch.equal(value, state[f"module.{name}"]) for name, value in trunk(network).state_dict().items())


def test_few_labels(images: Path, pretrained: Path, tmp_path: Path) -> None:
    found = run(images, tmp_path / "out", pretrained=pretrained, train_fraction=0.3, cached=True, folds=2)
    assert found["images"] == [6, 9]  # 2 of 7 in each class


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"train_fraction": 0.01}, "--train-fraction 0.01 leaves no image of class 'blue', which has 7"),
        ({"train_fraction": 1.5}, "--train-fraction must be at most 1"),
        ({"cached": True, "folds": 8}, "8-fold cross-validation needs 8 training images"),
        ({"cached": True, "folds": 1}, "--folds must be at least 2"),
        ({"features_from": "layer9"}, "--features-from layer9: the encoder has no such layer"),
        ({"features_from": "output", "pretrained": None, "arch": "smallcnn"}, "needs a checkpoint of pretraining"),
        ({"finetune": True}, "--finetune has two learning rates"),
        ({"finetune": True, "sweep": True, "lr": None}, "leave out --sweep"),
        ({"sweep": True, "sweep_lrs": "0 1"}, "--sweep-lrs above 0"),
        ({"sweep": True, "sweep_wds": math.nan}, "--sweep-wds of at least 0"),
        ({"finetune": True, "lr": None, "batch_size": 64}, "fewer than one batch of 64"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: dict[str, Any],
    says: str,
    images: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of(images, **({"pretrained": pretrained, "output_dir": tmp_path / "out"} | flags))
    assert main_lincls.main(words) == EXIT_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert says in error
    assert not (tmp_path / "out/lincls.json").exists()


def test_both_splits_are_read_as_the_options_say(
    images: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str]] = []
    opened = DataOptions.open

    def recording(options: DataOptions, split: str, labels_required: bool = True) -> Any:
        asked.append((split, options.loader, options.cache))
        return opened(options, split, labels_required)

    monkeypatch.setattr(DataOptions, "open", recording)
    run(images, tmp_path / "out", pretrained=pretrained, epochs=1, loader="folder", cache="ram")
    assert sorted(asked) == [("train", "folder", "ram"), ("val", "folder", "ram")]


def test_one_class_is_nothing_to_tell_apart(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_images(tmp_path / "data", CLASSES[:1])
    for flags in ({}, {"cached": True}, {"sweep": True, "lr": None}):
        words = words_of(data, pretrained=pretrained, output_dir=tmp_path / "out", **flags)
        assert main_lincls.main(words) == EXIT_INPUT
        assert "the data has one class, 'blue'" in capsys.readouterr().err


def test_another_protocol_does_not_go_on(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(images, tmp_path / "out", pretrained=pretrained, epochs=1, **SWEEP)
    assert main_lincls.main(words_of(images, resume="auto", output_dir=tmp_path / "out")) == EXIT_INPUT
    assert "was trained with --sweep True" in capsys.readouterr().err


def test_another_seed_does_not_go_on_where_it_dealt_out_the_images(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What one seed holds out another would have trained on."""
    how = dict(SWEEP, pretrained=pretrained, output_dir=tmp_path / "out", resume="auto", epochs=1)
    assert main_lincls.main(words_of(images, seed=1, **how)) == 0
    assert main_lincls.main(words_of(images, seed=2, **how)) == EXIT_INPUT
    assert "was trained with --seed 1" in capsys.readouterr().err
    assert main_lincls.main(words_of(images, seed=1, **how)) == 0


def test_a_folder_in_use_is_left_alone(
    images: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLock(tmp_path / "out"):
        words = arguments(images, pretrained=pretrained, output_dir=tmp_path / "out")
        assert main_lincls.main(words) == EXIT_INPUT
    assert "is in use by another run" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
