"""Each moment is counted once, to the innermost stage; the trace has the stages; a run says where its time went."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import main_moco
from moco import timing as stages
from moco.builder import MoCo, compile_encoders
from moco.encoders import build_encoder
from moco.run.log import read_log
from moco.timing import STAGES, Timeline, shares, waited_for

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is set by hand: its only entry is the time."""
    now = [100.0]
    monkeypatch.setattr(stages, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


class Event:
    """As CUDA's: it has happened, and can be asked about, only once somebody has waited for it or a later one."""

    now: list[float]
    waited_until = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = self.now[0]

    def synchronize(self) -> None:
        Event.waited_until = max(Event.waited_until, self.at)

    def query(self) -> bool:
        return self.at <= Event.waited_until

    def elapsed_time(self, end: Event) -> float:
        assert max(self.at, end.at) <= Event.waited_until
        return (end.at - self.at) * 1e3  # ms


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_moment_belongs_to_the_innermost_stage(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(Event, "now", clock, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timeline = Timeline()
    with timeline.stage("head"):  # before the start nothing is measured
        clock[0] += 50
    timeline.start(torch.device(device))
    before = timeline.totals()
    clock[0] += 1
    with timeline.stage("key"):
        clock[0] += 2
        with timeline.stage("augmentation"):
            clock[0] += 4
        clock[0] += 8
        with contextlib.suppress(ZeroDivisionError), timeline.stage("communication"):
            clock[0] += 16
            raise ZeroDivisionError
    after = timeline.totals()
    assert {name: value for name, value in after.items() if value} == {
        "other": 1, "key": 10, "augmentation": 4, "communication": 16,
    }  # fmt: skip
    assert shares(before, after) == {"key": 10 / 31, "augmentation": 4 / 31, "communication": 16 / 31, "other": 1 / 31}
    clock[0] += 3
    assert shares(after, timeline.totals()) == {"other": 1.0}


def test_finished_stages_are_read_without_waiting(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is behind the host: what it has not done yet is counted later, and nothing twice."""
    monkeypatch.setattr(Event, "now", clock, raising=False)
    monkeypatch.setattr(Event, "waited_until", 0.0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timeline = Timeline()
    timeline.start(torch.device("cuda"))
    for seconds in (2, 4):
        with timeline.stage("key"):
            clock[0] += seconds
    assert timeline.finished()["key"] == 0
    Event.waited_until = 102.0  # the device has come so far
    assert timeline.finished()["key"] == timeline.finished()["key"] == 2
    assert timeline.totals()["key"] == 6


def test_waiting_for_a_batch_is_data_wait(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline()
    monkeypatch.setattr(stages, "stage", timeline.stage)
    timeline.start(CPU)

    def slow() -> Iterator[int]:
        for number in (1, 2, 3):
            clock[0] += 5
            yield number

    for _ in waited_for(slow()):
        clock[0] += 2
    assert timeline.totals()["data wait"] == 15 and timeline.totals()["other"] == 6


RUN = "--dataset digits -a smallcnn --seed 0 -b 200 --epochs 1 --moco-dim 8 --moco-k 30 --eval-freq 0 --no-tensorboard"


def test_profile_and_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*RUN.split(), "-p", "1", "--output-dir"]
    assert main_moco.main([*words, str(tmp_path / "plain")]) == 0
    assert main_moco.main([*words, str(tmp_path / "run"), "--profile"]) == 0
    trace = json.loads((tmp_path / "run/profile/trace.json").read_text())
    found = {event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"}
    assert found >= set(STAGES), set(STAGES) - found
    table = (tmp_path / "run/profile/table.txt").read_text()
    assert table.startswith("share of 4 steps\n") and "backward  " in table and "aten::" in table
    assert "epoch 1  time  data wait " in capsys.readouterr().out
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("run", "plain")]
    (spent,) = (record["timing"]["shares"] for record in logs[0] if record["kind"] == "epoch")
    assert sum(spent.values()) == pytest.approx(1) and set(spent) == {*STAGES, "other"}
    losses = [[record["loss"] for record in log if record["kind"] == "train"] for log in logs]
    assert losses[0] == losses[1], "looking changes nothing"


def test_reference_step_trains_alike(tmp_path: Path) -> None:
    words = [*RUN.split(), "--loss", "align-uniform", "-p", "1", "--output-dir"]
    for name, more in (("fast", []), ("slow", ["--reference-step"])):
        assert main_moco.main([*words, str(tmp_path / name), *more]) == 0
    fast, slow = (
        [record["loss"] for record in read_log(tmp_path / name / "log.jsonl") if record["kind"] == "train"]
        for name in ("fast", "slow")
    )
    assert len(fast) == 7 and fast == pytest.approx(slow, rel=1e-3, abs=1e-3)
    assert fast != slow, "was it the slow one?"


def test_encoders_that_cannot_be_compiled_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler, from an empty cache; names and gradients are those of the plain encoder."""
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-compiler"),))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    images = torch.randn(4, 3, 16, 16)
    models = [MoCo(build_encoder("smallcnn", 4), dim=4, K=8, bn="local", seed=0) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    compile_encoders(models[1])
    with pytest.warns(UserWarning, match="torch.compile failed") as said:
        models[1](images, images)
    parts = sorted(str(w.message).split(",")[0] for w in said if "torch.compile failed" in str(w.message))
    assert parts == ["torch.compile failed on the key encoder", "torch.compile failed on the query encoder"]
    models[0](images, images)
    for model in models:  # neither is tried again: a warning would be an error
        q, _ = model(images, images)
        q.square().sum(dim=0)[0].backward()
    assert models[1].state_dict().keys() == models[0].state_dict().keys()
    for (name, a), (_, b) in zip(*(model.named_parameters() for model in models), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, msg=name)
