"""`main_lincls.py --finetune` on several CPU ranks, and what it does not compute."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moco.probe.model import Setup
from moco.run.log import read_log
from tests.probe.test_main import ROOT, images, loaded, pretrained, pretrained_state
from tests.probe.test_protocols import run, words_of

__all__ = ["images", "pretrained"]  # fixtures
FINETUNE: dict[str, Any] = dict(finetune=True, lr=None, trunk_lr=1, head_lr=1)


def on_ranks(ranks: int, data: Path, out: Path, **flags: Any) -> str:
    """What real processes under torchrun print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    words = words_of(data, output_dir=out, **FINETUNE | flags)
    done = subprocess.run([*command, "main_lincls.py", *words], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return loaded(folder / "checkpoint.pth.tar")["state_dict"]


def epochs(folder: Path) -> list[dict[str, Any]]:
    return [record for record in read_log(folder / "log.jsonl") if record["kind"] in ("epoch", "eval")]


@pytest.fixture(scope="module")
def two_ranks(images: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert on_ranks(2, images, folder, pretrained=pretrained, batch_size=7).count("top-1 ") == 1
    return folder


def test_two_ranks_fine_tune_as_one(two_ranks: Path, images: Path, pretrained: Path, tmp_path: Path) -> None:
    """Batches of 7, which two ranks share 4 to 3: BatchNorm sees the whole batch, every sample weighs the same."""
    found = run(images, tmp_path, pretrained=pretrained, batch_size=7, **FINETUNE)
    one, two = weights(tmp_path), weights(two_ranks)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, atol=1e-4, rtol=1e-4, msg=lambda told, name=name: f"{name}: {told}"
        )
    moved = one["module.features.0.weight"] - pretrained_state()["features.0.weight"]
    assert moved.abs().max() > 0.01  # far more than the tolerance
    losses, accuracies = (
        [[record[name] for record in epochs(folder) if name in record] for folder in (tmp_path, two_ranks)]
        for name in ("loss", "val_acc1")
    )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert accuracies[0] == accuracies[1] and len(losses[0]) == len(accuracies[0]) == 3
    assert found["top1"] == accuracies[1][-1]
    assert found["top1"] == epochs(two_ranks)[-1]["val_acc1"]


@pytest.mark.slow
def test_two_ranks_that_were_cut_end_with_the_same_bits(
    two_ranks: Path, images: Path, pretrained: Path, tmp_path: Path
) -> None:
    on_ranks(2, images, tmp_path, pretrained=pretrained, batch_size=7, epochs=2)
    on_ranks(2, images, tmp_path, resume="auto", batch_size=7, seed=None)
    whole = weights(two_ranks)
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path).items())
    a, b = (loaded(folder / "checkpoint.pth.tar")["optimizer"]["state"] for folder in (two_ranks, tmp_path))
    assert a.keys() == b.keys() and all(torch.equal(a[i]["momentum_buffer"], b[i]["momentum_buffer"]) for i in a)
    assert [r.get("loss", r.get("val_acc1")) for r in epochs(two_ranks)] == [
        r.get("loss", r.get("val_acc1")) for r in epochs(tmp_path)
    ]


def test_features_are_extracted_after_each_epoch_alone(
    images: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None before the first, which would be thrown away; where no epoch is left, once."""
    extract = Setup.features_of
    extracted: list[int] = []
    monkeypatch.setattr(Setup, "features_of", lambda setup, of: (extracted.append(len(of)), extract(setup, of))[1])
    found = run(images, tmp_path, pretrained=pretrained, epochs=2, **FINETUNE)
    assert extracted == [9, 9]
    again = run(images, tmp_path, resume="auto", epochs=2, **FINETUNE)
    assert len(extracted) == 3 and again["top1"] == found["top1"]
