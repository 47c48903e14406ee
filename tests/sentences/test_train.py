"""Runs of python -m moco.sentences.train: they end well, go on with the same bits, and say what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moco.distributed.global_batch import GlobalBatch
from moco.losses.neighbours import NeighbourLoss
from moco.losses.weighted import LossOutput
from moco.run.checkpoint import checkpoints, load
from moco.run.log import read_log
from moco.sentences import corpus
from moco.sentences.measures import encode, held_out_measures
from moco.sentences.network import SentencePair
from moco.sentences.sampler import WindowSampler
from moco.sentences.state import load_weights, vocabulary_of
from moco.sentences.step import TrainingStep
from moco.sentences.train import main
from moco.sentences.vocabulary import Vocabulary
from tests.reliability.runs import assert_same_run, environment, free_port, logged
from tests.sentences.conftest import SETTINGS
from tests.sentences.material import write_classes, write_text

MIXED = ["--moco-contr-w", "0.5", "--moco-align-w", "1", "--moco-unif-w", "0.5", "--moco-unif-t", "2"]


def train(argv: list[str], folder: Path, *more: str) -> int:
    return main([*argv, "--output-dir", str(folder), *more])


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, work: Callable[[], object]) -> None:
    """Calls `work` before the training step of that number, counted from 1 in this process."""
    whole, calls = TrainingStep.__call__, 0

    def step(self: TrainingStep, *arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            work()
        return whole(self, *arguments, **more)

    monkeypatch.setattr(TrainingStep, "__call__", step)


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [["--loss", "infonce"], ["--loss", "align-uniform"], MIXED], ids=lambda loss: loss[-1])
def test_a_run_learns_and_leaves_all_it_needs(loss: list[str], argv: list[str], tmp_path: Path) -> None:
    assert train(argv, tmp_path / "run", *loss, "--epochs", "4") == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *(f"checkpoint_000{i}.pth.tar" for i in range(4)),
        "log.jsonl",
        "options.json",
        "text",
        "vocabulary.txt",
    }
    records = read_log(tmp_path / "run" / "log.jsonl")
    means = [record["loss"] for record in records if record["kind"] == "epoch"]
    assert len(means) == 4 and means[-1] < means[0] - 0.01
    assert sum(record["kind"] == "train" for record in records) == 20
    assert all(record["timing"]["tokens_per_s"] > 0 for record in records if record["kind"] == "train")
    evaluations = [record for record in records if record["kind"] == "eval"]
    state = load(tmp_path / "run" / "checkpoint_0003.pth.tar")
    pair = SentencePair(len(vocabulary_of(state["moco_run"])), 6, 5)
    load_weights(pair, state, tmp_path)
    text = corpus.load(tmp_path / "run")
    measures = held_out_measures(*encode(pair, text.part(200, 220), torch.device("cpu")))
    assert {name: evaluations[-1][name] for name in measures} == measures, "of the sentences that were held out"


def test_an_epoch_sees_every_window_once_in_an_order_of_its_own() -> None:
    sampler = WindowSampler(107, 10, seed=1)
    orders = [sampler.starts(epoch).tolist() for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(0, 100, 10)) and orders[0] != orders[1]
    assert WindowSampler(107, 10, seed=2).starts(0).tolist() != orders[0]
    assert sampler.own(30).tolist() == list(range(30, 40))


def test_labelled_sentences_are_classified_at_the_end(argv: list[str], tmp_path: Path) -> None:
    write_classes(tmp_path / "MR")
    assert train(argv, tmp_path / "run", "--classify", str(tmp_path / "MR"), "--folds", "3") == 0
    evaluations = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "eval"]
    assert "val_mr_acc1" not in evaluations[0] and 0 <= evaluations[1]["val_mr_acc1"] <= 100


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MIXED that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    assert train([str(text), *SETTINGS, "--epochs", "2", *MIXED], folder) == 0
    return folder


@pytest.mark.parametrize("number", [1, 5, 10, 14])
def test_a_preempted_run_goes_on_with_the_same_bits(
    number: int, argv: list[str], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with monkeypatch.context() as patch:
            at_step(patch, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
            assert train([*argv, *MIXED], tmp_path / "run") == 75
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
    assert train([*argv, *MIXED], tmp_path / "run", "--resume", "auto") == 0
    for path in checkpoints(tmp_path / "run"):
        if not (reference / path.name).exists():
            path.unlink()  # that of the signal
    assert_same_run(tmp_path / "run", reference)


def test_a_killed_run_goes_on_with_the_same_bits(
    argv: list[str], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        at_step(patch, 18, die)
        with pytest.raises(RuntimeError, match="killed"):
            train([*argv, *MIXED], tmp_path / "run", "--save-every", "3")
    assert train([*argv, *MIXED], tmp_path / "run", "--resume", "auto") == 0
    a, b = logged(tmp_path / "run"), logged(reference)
    assert repr(a) == repr(b)
    weights = [load(folder / "checkpoint_0001.pth.tar")["state_dict"] for folder in (tmp_path / "run", reference)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])


def test_a_finished_run_has_nothing_left_to_do(argv: list[str], tmp_path: Path) -> None:
    assert train(argv, tmp_path / "run") == 0
    before = (tmp_path / "run/checkpoint_0001.pth.tar").read_bytes()
    assert train(argv, tmp_path / "run", "--resume", "auto") == 0
    assert (tmp_path / "run/checkpoint_0001.pth.tar").read_bytes() == before


# -- several ranks -----------------------------------------------------------------------------------------------------


def on_ranks(argv: list[str], world: int) -> list[int]:
    port = str(free_port())
    processes = []
    for rank in range(world):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        env = {**environment(), **ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(subprocess.Popen([sys.executable, "-m", "moco.sentences.train", *argv], env=env))
    return [process.wait(200) for process in processes]


def test_two_ranks_train_what_one_does(argv: list[str], tmp_path: Path) -> None:
    """Uneven stretches (11 and 10 of 21), positives and negatives on the other rank, all terms, clipping."""
    words = [*argv, *MIXED, "-b", "21", "--epochs", "1", "-p", "1", "--lr", "0.001"]
    assert on_ranks([*words, "--output-dir", str(tmp_path / "two")], 2) == [0, 0]
    assert train(words, tmp_path / "one") == 0
    parts = ("loss", "loss_contrastive", "loss_align", "loss_uniform", "val_alignment", "val_uniformity")
    for here, there in zip(logged(tmp_path / "two"), logged(tmp_path / "one"), strict=True):
        for name in parts:
            assert here.get(name, 0.0) == pytest.approx(there.get(name, 0.0), rel=2e-5, abs=5e-6), (
                name,
                here["global_step"],
            )
    weights = [load(tmp_path / name / "checkpoint_0000.pth.tar")["state_dict"] for name in ("two", "one")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=2e-5, msg=name)


# -- numbers gone wrong ------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_ends_the_run(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = NeighbourLoss.__call__

    def broken(self: NeighbourLoss, f: torch.Tensor, g: torch.Tensor) -> LossOutput:
        loss, logs = whole(self, f, g)
        return LossOutput(loss * float("nan"), logs)

    at_step(monkeypatch, 13, lambda: monkeypatch.setattr(NeighbourLoss, "__call__", broken))
    assert train(argv, tmp_path / "run") == 3
    start = int(WindowSampler(200, 20, 3).starts(1)[2])
    assert f"the gradient of step 13 (sentences {start} to {start + 19}) is not finite" in capsys.readouterr().err
    assert all(x.isfinite().all() for x in load(checkpoints(tmp_path / "run")[-1])["state_dict"].values())


def test_a_bad_step_changes_no_weight() -> None:
    pair = SentencePair(4, 2, 2)
    optimizer = torch.optim.Adam(pair.parameters(), 0.1, fused=True)
    step = TrainingStep(pair, NeighbourLoss(), optimizer, GlobalBatch(), [3], 0.5)
    batch = corpus.from_sentences([["a"], ["b"], ["a", "b"]], Vocabulary("ab"), 5)
    packed = batch.batch(np.arange(3), torch.device("cpu"))
    step(packed)
    before = [p.clone() for p in pair.parameters()]
    step.loss = NeighbourLoss(temperature=1e-40)
    step(packed)
    assert step.not_applied() == 2 and all(p.equal(q) for p, q in zip(pair.parameters(), before, strict=True))


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], folder: Path, *more: str) -> str:
    capsys.readouterr()
    assert train(argv, folder, *more) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_bad_texts_are_refused(argv: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = argv[1:]
    (tmp_path / "one.txt").write_text("Only one sentence.\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    assert "has 1 sentence to train on, fewer than --batch-size 20" in refused(
        capsys, [str(tmp_path / "one.txt"), *settings], tmp_path / "run", "--held-out", "0"
    )
    assert "is empty" in refused(capsys, [str(tmp_path / "empty.txt"), *settings], tmp_path / "run")
    assert "is a binary file" in refused(capsys, [str(tmp_path / "binary.txt"), *settings], tmp_path / "run")
    assert "there is no file or folder" in refused(capsys, [str(tmp_path / "gone"), *settings], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "no text was given" in refused(capsys, settings, tmp_path / "run")
    assert "fewer than --batch-size 20" in refused(capsys, argv, tmp_path / "run", "--held-out", "500")
    assert not checkpoints(tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--moco-contr-w", "0"], "at least one must be positive"),
        (["--moco-t", "0"], "the temperature (--moco-t) must be a positive number"),
        (["-b", "1"], "--batch-size must be at least 2"),
        (["--lr", "-1"], "--lr must be greater than 0"),
        (["--save-every", "soon"], "--save-every takes steps"),
        (["--layuot", "lines"], "unknown argument --layuot; did you mean --layout"),
        (["--loss", "hcl"], "invalid choice: 'hcl'"),
        (["--seed", str(2**63)], "--seed must be at least 0 and less than 2^63"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    words: list[str], message: str, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, argv, tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_what_does_not_go_on_is_refused(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train(argv, run, "--epochs", "1") == 0
    auto = ("--resume", "auto")
    assert "already holds a run" in refused(capsys, argv, run)
    other = write_text(tmp_path / "other.txt", 220, seed=9)
    before = {path: path.stat().st_ino for path in run.rglob("*") if path.is_file()}
    assert "was trained on another text" in refused(capsys, [str(other), *argv[1:]], run, *auto)
    assert "was trained on another text" in refused(capsys, argv, run, *auto, "--longest", "4")
    assert {path: path.stat().st_ino for path in run.rglob("*") if path.is_file()} == before, "as it was"
    assert "pass --embedding 6 --hidden 5" in refused(capsys, argv, run, *auto, "--hidden", "4")
    assert train([str(other), *argv[1:]], tmp_path / "second", "--epochs", "1", "--vocabulary-size", "7") == 0
    words = ("--vocabulary", str(tmp_path / "second" / "vocabulary.txt"))
    assert "is the vocabulary of another run" in refused(capsys, argv, run, *auto, *words)
    torch.save({"arch": "resnet50", "state_dict": {}}, tmp_path / "image.pth.tar")
    foreign = ("--resume", str(tmp_path / "image.pth.tar"))
    assert "is no checkpoint of python -m moco.sentences.train" in refused(capsys, argv, tmp_path / "new", *foreign)


def test_a_vocabulary_of_another_run_may_start_one(argv: list[str], tmp_path: Path) -> None:
    assert train(argv, tmp_path / "a", "--epochs", "1", "--vocabulary-size", "7") == 0
    assert train(argv, tmp_path / "b", "--epochs", "1", "--vocabulary", str(tmp_path / "a/vocabulary.txt")) == 0
    assert repr(logged(tmp_path / "a")) == repr(logged(tmp_path / "b"))


def test_another_number_in_the_middle_of_an_epoch_is_refused(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(argv, tmp_path / "run", "--epochs", "1", "--save-every", "4") == 0
    (tmp_path / "run" / "checkpoint_0000.pth.tar").unlink()
    message = refused(capsys, argv, tmp_path / "run", "--resume", "auto", "-b", "10")
    assert "was saved inside an epoch with --batch-size 20" in message
