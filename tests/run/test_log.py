"""The run's log: every record survives a kill, a resume cuts it back, and it is always valid JSON."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import resource
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from moco.errors import InputError
from moco.run.log import RunLog, read_log


def quiet_log(folder: Path, **arguments: Any) -> RunLog:
    return RunLog(folder, **{"console": io.StringIO(), "tensorboard": False, **arguments})


def train(log: RunLog, global_step: int, **values: float) -> None:
    where = {"epoch": (global_step - 1) // 4, "step": (global_step - 1) % 4 + 1, "steps": 4, "epochs": 3}
    log.train({"loss": 7 / global_step, **values}, {"images_per_s": 100.0}, global_step=global_step, **where)


def test_records_are_read_back(tmp_path: Path) -> None:
    with quiet_log(tmp_path) as log:
        log.start({"options": {"lr": 0.03, "schedule": [120, 160]}})
        train(log, 3, acc1=12.5)
        log.epoch({"loss": 2.0}, epoch=0, global_step=4)
        log.eval({"knn_top1": 50.0}, epoch=0, global_step=4)
        log.warning("collapse", epoch=0, global_step=4, values={"uniformity": -0.01})
    assert read_log(tmp_path / "log.jsonl") == [
        {"kind": "start", "epoch": 0, "global_step": 0, "options": {"lr": 0.03, "schedule": [120, 160]}},
        {
            "kind": "train",
            "epoch": 0,
            "step": 3,
            "global_step": 3,
            "loss": 7 / 3,  # to the last bit
            "acc1": 12.5,
            "timing": {"images_per_s": 100.0},
        },
        {"kind": "epoch", "epoch": 0, "global_step": 4, "loss": 2.0},
        {"kind": "eval", "epoch": 0, "global_step": 4, "knn_top1": 50.0},
        {"kind": "warning", "epoch": 0, "global_step": 4, "message": "collapse", "uniformity": -0.01},
    ]


def test_killed_process_loses_no_record(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        log = quiet_log(tmp_path)
        for step in range(1, 6):
            train(log, step)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [record["global_step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5]


def test_half_a_line_is_dropped_and_never_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"kind": "train", "global_step": 1}\n{"kind": "train", "global_st')
    assert [record["global_step"] for record in read_log(path)] == [1]
    with quiet_log(tmp_path) as log:
        train(log, 2)
    assert [record["global_step"] for record in read_log(path)] == [1, 2]


@pytest.mark.parametrize("cut", range(0, 140, 7))
def test_cut_anywhere(tmp_path: Path, cut: int) -> None:
    """A machine that dies can leave any beginning of the file."""
    with quiet_log(tmp_path) as log:
        for step in range(1, 4):
            train(log, step)
    whole = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(whole[:cut])
    steps = [record["global_step"] for record in read_log(tmp_path / "log.jsonl")]
    assert steps == list(range(1, whole[:cut].count(b"\n") + 1))


def test_cut_back_to_the_step_resumed_from(tmp_path: Path) -> None:
    with quiet_log(tmp_path) as log:
        log.start({})
        for step in range(1, 11):
            train(log, step)
            if step % 4 == 0:
                log.epoch({}, epoch=step // 4 - 1, global_step=step)
    with quiet_log(tmp_path) as log:
        assert log.cut_back(8) == 2
        log.start({}, epoch=2, global_step=8)
        train(log, 9)
    records = [(record["kind"], record["global_step"]) for record in read_log(tmp_path / "log.jsonl")]
    expected = [("start", 0)] + [("train", s) for s in range(1, 5)] + [("epoch", 4)]
    expected += [("train", s) for s in range(5, 9)] + [("epoch", 8), ("start", 8), ("train", 9)]
    assert records == expected


def test_an_interrupted_and_an_undisturbed_run_leave_the_same_records(tmp_path: Path) -> None:
    with quiet_log(tmp_path / "whole") as log:
        for step in range(1, 9):
            train(log, step)
    with quiet_log(tmp_path / "cut") as log:
        for step in range(1, 6):
            train(log, step)
    with quiet_log(tmp_path / "cut") as log:
        log.cut_back(3)
        for step in range(4, 9):
            train(log, step)
    assert (tmp_path / "cut" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_cut_back_killed_half_way_leaves_the_old_log(tmp_path: Path) -> None:
    with quiet_log(tmp_path) as log:
        for step in range(1, 6):
            train(log, step)
    before = (tmp_path / "log.jsonl").read_bytes()
    child = os.fork()
    if child == 0:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        quiet_log(tmp_path).cut_back(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_cut_back_passes_over_damaged_lines(tmp_path: Path) -> None:
    """A log must not keep a run from going on."""
    lines = [b'{"global_step": 1}', b"\xff\xfe{", b"[3]", b'{"global_step": "x"}', b'{"global_step": 2}', b'{"glob']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    quiet_log(tmp_path).cut_back(1)
    assert read_log(tmp_path / "log.jsonl") == [{"global_step": 1}]


def test_full_disk(tmp_path: Path) -> None:
    """One sentence; and the part of a line that still fitted is not in the way later."""

    written: list[int] = []

    def train_on(log: RunLog) -> None:
        for step in range(1, 10):
            train(log, step)
            written.append(step)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
        log = quiet_log(tmp_path)
        message = r"cannot write .*log\.jsonl: .*; make room, then go on with --resume auto"
        with pytest.raises(InputError, match=message):
            train_on(log)
        assert [record["global_step"] for record in read_log(tmp_path / "log.jsonl")] == written  # refused at once
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    whole = len(read_log(tmp_path / "log.jsonl"))
    assert 1 <= whole < 9
    with quiet_log(tmp_path) as log:
        train(log, 12)
    assert [record["global_step"] for record in read_log(tmp_path / "log.jsonl")] == [*range(1, whole + 1), 12]


def test_cut_back_without_a_log(tmp_path: Path) -> None:
    assert quiet_log(tmp_path / "nowhere").cut_back(5) == 0


@settings(max_examples=50)
@given(st.lists(st.floats(), min_size=1, max_size=5))
def test_valid_json_whatever_the_numbers(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("log")
    with quiet_log(folder) as log:
        log.epoch({"values": values, "first": values[0]}, epoch=0, global_step=1)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((folder / "log.jsonl").read_text(), parse_constant=refuse)
    first = read_log(folder / "log.jsonl")[0]["first"]
    assert first == values[0] or (math.isnan(first) and math.isnan(values[0]))


def test_numbers_of_torch(tmp_path: Path) -> None:
    with quiet_log(tmp_path) as log:
        log.epoch({"a": torch.tensor(0.1), "b": torch.tensor(3), "c": float("-inf")}, epoch=0, global_step=1)
    record = read_log(tmp_path / "log.jsonl")[0]
    assert record["a"] == torch.tensor(0.1).item() and record["b"] == 3 and record["c"] == -math.inf
    assert isinstance(record["b"], int)


def test_bad_logs_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the log"):
        read_log(tmp_path / "nowhere.jsonl")
    (tmp_path / "log.jsonl").write_bytes(b'{"a": 1}\nnonsense\n{"b": 2}\n')
    with pytest.raises(InputError, match="line 2"):
        read_log(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").write_bytes(b"3\n")
    with pytest.raises(InputError, match="line 1 is not a record"):
        read_log(tmp_path / "log.jsonl")


def test_other_ranks_write_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, rank=1, wandb="project") as log:
        assert log.cut_back(3) == 0
        log.start({})
        train(log, 1)
        log.advance(epoch=0, step=1, steps=4, epochs=1)
        log.epoch({}, epoch=0, global_step=1)
        log.warning("w", epoch=0, global_step=1)
        log.say("hello")
        log.sync()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


# -- TensorBoard and wandb ---------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    with quiet_log(tmp_path, tensorboard=True) as log:
        for step in range(1, 6):
            train(log, step)
    with quiet_log(tmp_path, tensorboard=True) as log:
        log.cut_back(3)
        for step in range(4, 8):
            train(log, step)
    curves = scalars(tmp_path)
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]
    assert curves["train/loss"][6][1] == pytest.approx(1.0)
    assert "train/images_per_s" in curves


@pytest.mark.parametrize("clock", [[5, 5, 5], [9, 5, 5], [9, 7, 5]], ids=["one second", "back once", "back twice"])
def test_tensorboard_orders_starts_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[int]
) -> None:
    from tensorboard.summary.writer import event_file_writer

    # names end with a count that is compared as text: 9 after 10
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(8))
    for start, second in enumerate(clock):
        monkeypatch.setattr("time.time", lambda second=second: 1_700_000_000.0 + second)
        with quiet_log(tmp_path, tensorboard=True) as log:
            log.cut_back(2 * start)
            for step in range(2 * start + 1, 2 * start + 4):
                train(log, step)
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]


def test_curves_that_cannot_be_written_do_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    console = io.StringIO()
    with quiet_log(tmp_path, tensorboard=True, console=console) as log:
        train(log, 1)
        monkeypatch.setattr(log._writer, "add_scalar", full)
        train(log, 2)
        train(log, 3)
    assert len(read_log(tmp_path / "log.jsonl")) == 3
    assert console.getvalue().count("curves end here, because they cannot be written: No space left") == 1


def test_curves_that_cannot_be_opened_do_not_end_a_run(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder belongs")
    console = io.StringIO()
    with quiet_log(tmp_path, tensorboard=True, console=console) as log:
        train(log, 1)
        train(log, 2)
    assert len(read_log(tmp_path / "log.jsonl")) == 2
    assert console.getvalue().count("curves end here, because they cannot be written: ") == 1


def test_goes_on_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    console = io.StringIO()
    with quiet_log(tmp_path, tensorboard=True, console=console) as log:
        train(log, 1)
        train(log, 2)
    assert len(read_log(tmp_path / "log.jsonl")) == 2
    assert console.getvalue().count("pip install tensorboard") == 1


class FakeWandb(ModuleType):
    """wandb's interface as far as it is used. `offline` makes a connection fail."""

    def __init__(self, offline: bool = False) -> None:
        super().__init__("wandb")
        self.calls: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.offline = offline

    def init(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        if self.offline and arguments.get("mode") != "offline":
            raise ConnectionError("no network")
        return SimpleNamespace(
            id=arguments["id"] or "abc",
            log=lambda values, step: self.logged.append((values, step)),
            finish=lambda: None,
        )


def test_wandb_goes_on_in_the_same_run_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        with quiet_log(tmp_path, wandb="project") as log:
            log.start({"options": {"lr": 0.03}})
            train(log, step)
    assert [call["id"] for call in fake.calls] == [None, "abc"]
    assert fake.calls[0]["project"] == "project"
    assert fake.logged == [
        ({"train/loss": 7.0, "train/images_per_s": 100.0}, 1),
        ({"train/loss": 3.5, "train/images_per_s": 100.0}, 2),
    ]


def test_wandb_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeWandb(offline=True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with quiet_log(tmp_path, wandb="project") as log:
        log.start({})
        train(log, 1)
    assert fake.calls[-1]["mode"] == "offline"
    assert len(fake.logged) == 1
    assert "recording offline" in capsys.readouterr().err


def test_wandb_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        quiet_log(tmp_path, wandb="project").start({})
    assert list(tmp_path.iterdir()) == []


def test_wandb_is_not_touched_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with quiet_log(tmp_path) as log:
        log.start({})
        train(log, 1)
    assert fake.calls == []
