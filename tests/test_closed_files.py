"""Every path that a user gives may be closed to him: one sentence and exit code 2, from every command."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.jobs import main as jobs
from moco.data.beton.__main__ import main as beton
from moco.data.stats import main as stats
from moco.errors import EXIT_INPUT
from moco.evaluate.__main__ import main as evaluate
from moco.export.__main__ import main as export
from moco.pretrain.__main__ import main as pretrain
from moco.probe.__main__ import main as probe
from moco.probe.depth.__main__ import main as depth
from moco.report.__main__ import main as report
from moco.sentences.evaluate import main as evaluate_sentences
from moco.sentences.train import main as sentences
from tests.closed import closed

Main = Callable[[list[str]], int]
ONE = "--dataset digits -a smallcnn --epochs 1 --moco-k 64 --moco-dim 16 -b 64 --eval-freq 0 --no-tensorboard"
SMALL = ONE.replace("--dataset digits", "--image-size 16")
CLOSED = {  # name of the place that is closed -> (command, words); it stands for itself in them
    "tree/train/cat": [
        (pretrain, f"tree {SMALL} --output-dir out"),
        (stats, "tree"),
        (beton, "write tree out.beton"),
    ],
    "tree/train": [(pretrain, f"tree {SMALL} --output-dir out"), (beton, "write tree out.beton")],
    "tree": [(pretrain, f"tree {SMALL} --output-dir out"), (stats, "tree"), (beton, "write tree out.beton")],
    "tree/train/cat/0.png": [(stats, "tree"), (beton, "write tree out.beton")],
    "file": [
        (pretrain, f"{ONE} --resume file --output-dir out"),
        (pretrain, f"{ONE} --init-from file --output-dir out"),
        (pretrain, f"{ONE} --config file --output-dir out"),
        (probe, "--dataset digits --pretrained file --output-dir out"),
        (evaluate, "file --dataset digits"),
        (export, "file --to safetensors --output-dir out"),
        (depth, "tree --pretrained file --features-from layer3 --output-dir out"),
        (sentences, "file --output-dir out"),
        (evaluate_sentences, "file text"),
        (jobs, "--index file"),
    ],
    "folder": [
        (pretrain, f"{ONE} --output-dir folder"),
        (pretrain, f"{ONE} --output-dir folder/run"),
        (sentences, "text --output-dir folder/run"),
        (sentences, "folder --output-dir out"),
        (sentences, "text --classify folder --output-dir out"),
        (evaluate_sentences, "file folder"),
        (beton, "write tree folder/out.beton"),
        (beton, "info folder/x.beton"),
        (report, "folder --output out"),
    ],
    "run/log.jsonl": [(report, "run --output out")],
}
CASES = [pytest.param(place, main, words, id=f"{place}: {words}") for place in CLOSED for main, words in CLOSED[place]]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for name in ("ant", "cat"):
            (tmp_path / "tree" / split / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(f"tree/{split}/{name}/{i}.png")
    for name in ("folder", "run", "text"):
        (tmp_path / name).mkdir()
    for name in ("neg", "pos"):
        (tmp_path / "text" / f"{name}.txt").write_text("One word.\n" * 200)
    (tmp_path / "run" / "log.jsonl").write_text("{}\n")
    (tmp_path / "file").write_text("any")
    return tmp_path


@pytest.mark.parametrize(("place", "main", "words"), CASES)
def test_a_closed_place_is_one_sentence(
    places: Path, place: str, main: Main, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if main is beton:
        pytest.importorskip("ffcv")
    with closed(places / place):
        assert main(words.split()) == EXIT_INPUT
    told = [line for line in capsys.readouterr().err.splitlines() if line and "img/s" not in line]
    assert len(told) == 1 and told[0].startswith("error: "), told
    assert "Permission denied" in told[0] and place.split("/")[0] in told[0]
    assert not os.path.exists("out.beton")
