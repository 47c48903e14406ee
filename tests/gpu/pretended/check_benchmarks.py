"""`make bench-gpu`, rehearsed: every script's path for CUDA runs to its end."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import moco.pretrain.__main__ as pretraining
from benchmarks import evidence_gpu, measuring
from tests.gpu.pretended import trainer
from tests.gpu.pretended.gpu import ROOT

SCRIPTS = ["loss_head", "training_step", "momentum_update", "sentence_step", "photographs"]
TOO_LONG = ["multi_crop"]  # compiles four graphs of augmentations: it ran to its end by hand, in 107 s


@pytest.fixture(autouse=True)
def results(patch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where results are written. The clock goes on by a second each time it is read, and nothing is run to warm up."""
    seconds = itertools.count()
    patch.setattr(measuring.alternate, "__defaults__", (0, lambda: float(next(seconds))))
    patch.setattr(measuring, "RESULTS", tmp_path)
    patch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    return tmp_path


def test_no_script_is_left_out() -> None:
    line = re.search(r"^bench-gpu:.*?for topic in ([a-z_ ]+);", (ROOT / "Makefile").read_text(), re.M | re.S)
    assert line is not None and line[1].split() == SCRIPTS + TOO_LONG


@pytest.mark.parametrize("script", SCRIPTS)
def test_runs_to_its_end(script: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with trainer.on_gpu(patch) as (gpu, _):
        few = ["--number", "4"] if script == "photographs" else []
        import_module(f"benchmarks.{script}").main(["--device", "cuda", "--trial", "--rounds", "1", *few])
    assert gpu.faults == []
    assert "| what | against | measured | target | met |" in capsys.readouterr().out


def test_a_study_runs_to_its_end_and_writes_its_table(
    patch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make evidence-gpu STAGE=cifar10`, of a small network; its run is a process of its own, but here."""
    study = evidence_gpu.STUDIES["cifar10"]
    words = f"{study.words} {evidence_gpu._SMALL} --dataset digits --amp bf16 --device cuda --no-tensorboard"
    patch.setitem(evidence_gpu.STUDIES, "cifar10", replace(study, words=words))
    patch.setattr(evidence_gpu, "subprocess", SimpleNamespace(Popen=_RunHere, TimeoutExpired=TimeoutError))
    page = tmp_path / "page.md"
    page.write_text("<!-- gpu -->\n<!-- end -->\n")
    (tmp_path / "runs" / "images" / "cifar10" / "train").mkdir(parents=True)
    with trainer.on_gpu(patch) as (gpu, _):
        arguments = ["--output-dir", str(tmp_path / "runs"), "--results", str(tmp_path), "--page", str(page)]
        assert evidence_gpu.main(["--stage", "cifar10", *arguments]) == 0
    assert gpu.faults == []
    found = json.loads((tmp_path / "cifar10.json").read_text())
    assert found["finished"] and found["epochs"] == 2 and not found["rehearsal"]
    assert "| cifar10 | 2 |" in page.read_text()


class _RunHere:
    """A subprocess.Popen that runs main_moco.py in this process."""

    def __init__(self, command: list[str], **_: Any) -> None:
        assert command[1] == "main_moco.py"
        self.code = pretraining.main(command[2:])

    def wait(self, timeout: float | None = None) -> int:
        return self.code


def test_a_result_is_written_at_the_real_size(results: Path, patch: pytest.MonkeyPatch) -> None:
    with trainer.on_gpu(patch) as (gpu, _):
        import_module("benchmarks.loss_head").main(["--device", "cuda", "--rounds", "2"])
    assert gpu.faults == []
    found = json.loads((results / "loss_head-cuda.json").read_text())
    assert found["K"] == 65536 and found["device"] == "cuda"
    assert all(len(seconds) == 2 for seconds in found["seconds"].values())
