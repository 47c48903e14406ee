"""The background writer: what is written is what was submitted, errors come up, old files go, and no others."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from moco.errors import InputError
from moco.run import saver as saver_module
from moco.run.checkpoint import checkpoint_name, latest, load, position, save
from moco.run.saver import Every, Saver, host_copy, host_like


def state(value: float = 0.0) -> dict[str, Any]:
    return {
        "state_dict": {"w": torch.full((1000,), value)},
        "moco_run": {"list": [torch.tensor(value), 3], "t": (1, "x")},
    }


def names(folder: Path) -> list[str]:
    found = [path for path in folder.iterdir() if position(path)]
    return [path.name for path in sorted(found, key=lambda path: position(path) or (0, 0))]


class HeldBack:
    """Stands in for `save`: writes only once released, and says when it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started, self.release = threading.Event(), threading.Event()
        monkeypatch.setattr(saver_module, "save", self)

    def __call__(self, path: Path, state: dict[str, Any]) -> None:
        self.started.set()
        assert self.release.wait(30)
        save(path, state)


def test_training_goes_on_while_the_state_at_submit_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldBack(monkeypatch)
    saver = Saver(tmp_path)
    weights = torch.ones(1000)
    inner = [weights[:3]]
    saver.submit({"w": weights, "inner": inner}, checkpoint_name(0))  # returns although nothing is written
    assert held.started.wait(30)
    weights.zero_()  # the next optimiser step
    inner.append(weights)
    held.release.set()
    saver.wait()
    written = load(tmp_path / checkpoint_name(0))
    assert torch.equal(written["w"], torch.ones(1000))
    assert len(written["inner"]) == 1
    assert torch.equal(written["inner"][0], torch.ones(3))


def test_a_second_submit_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldBack(monkeypatch)
    saver = Saver(tmp_path)
    saver.submit(state(1), checkpoint_name(0))
    assert held.started.wait(30)
    second = threading.Thread(target=saver.submit, args=(state(2), checkpoint_name(1)))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    assert names(tmp_path) == []
    held.release.set()
    second.join(30)
    saver.wait()
    assert names(tmp_path) == [checkpoint_name(0), checkpoint_name(1)]


def test_a_slice_costs_its_own_size(tmp_path: Path) -> None:
    """torch.save writes the whole storage behind a view."""
    Saver(tmp_path).submit({"w": torch.zeros(10**6)[:2]}, checkpoint_name(0))
    saver = Saver(tmp_path)
    saver.submit({"w": torch.zeros(10**6)[:2]}, checkpoint_name(1))
    saver.wait()
    assert (tmp_path / checkpoint_name(1)).stat().st_size < 10_000


@pytest.mark.parametrize("surfaces_at", ["submit", "wait"])
def test_an_error_in_the_thread_reaches_the_training_loop_once(tmp_path: Path, surfaces_at: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    saver = Saver(folder)
    folder.rmdir()
    saver.submit(state(), checkpoint_name(0))
    with pytest.raises(InputError, match="cannot write"):
        saver.wait() if surfaces_at == "wait" else saver.submit(state(), checkpoint_name(1))
    saver.wait()
    folder.mkdir()
    saver.submit(state(), checkpoint_name(2))
    saver.wait()
    assert names(folder) == [checkpoint_name(2)]


def test_host_copy_keeps_bits_and_kinds() -> None:
    original = {"a": torch.tensor([float("nan"), -0.0]), "b": [1, (2, torch.arange(3))], "c": "text", "d": None}
    copied = host_copy(original)
    assert copied["a"].view(torch.int32).equal(original["a"].view(torch.int32))  # type: ignore[attr-defined]
    assert copied["b"][0] == 1 and isinstance(copied["b"][1], tuple) and copied["b"][1][1].tolist() == [0, 1, 2]
    assert copied["c"] == "text" and copied["d"] is None
    assert copied["a"].data_ptr() != original["a"].data_ptr()  # type: ignore[attr-defined]


def test_host_copy_keeps_the_memory_format() -> None:
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert host_like(weight, pin_memory=False).stride() == weight.stride() != weight.contiguous().stride()
    copied = host_copy({"weight": weight})["weight"]
    assert copied.stride() == weight.stride()
    assert torch.equal(copied, weight)


@pytest.mark.gpu
def test_host_copy_from_the_gpu() -> None:
    """The copy holds the values at the call, also of work still queued on the stream, and not those of later steps."""
    x = torch.ones(1 << 22, device="cuda")
    for _ in range(50):
        x.mul_(1.01)
    expected = x.clone()
    copied = host_copy({"x": x, "y": [x[:5]]})
    x.zero_()
    assert not copied["x"].is_cuda
    assert torch.equal(copied["x"], expected.cpu())
    assert torch.equal(copied["y"][0], expected[:5].cpu())


def test_keeps_the_last_n_and_the_milestones(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep_last=2, keep_every=2)
    for epoch in range(5):
        saver.submit(state(), checkpoint_name(epoch, 10))
        saver.submit(state(), checkpoint_name(epoch))
    saver.wait()
    # the second and fourth epoch (0-based names 1 and 3), and the last two files: 4's middle and its end
    assert names(tmp_path) == [checkpoint_name(1), checkpoint_name(3), checkpoint_name(4, 10), checkpoint_name(4)]


def test_keeps_all_epochs_by_default_but_not_all_inside_them(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    for epoch in range(3):
        for step in (10, 20, 30):
            saver.submit(state(), checkpoint_name(epoch, step))
        saver.submit(state(), checkpoint_name(epoch))
    saver.wait()
    assert names(tmp_path) == [checkpoint_name(0), checkpoint_name(1), checkpoint_name(2, 30), checkpoint_name(2)]


def test_save_every() -> None:
    assert [step for step in range(1, 10) if Every("3").due(step)] == [3, 6, 9]
    assert not any(Every(None).due(step) for step in range(1, 10))
    minutes = Every("0.001m")
    assert not Every("30m").due(1)
    while not minutes.due(1):
        pass
    assert minutes.due(2)
    minutes.saved()
    for wish in ("0", "0m", "-3", "m", "3h", "x", "2.5", "1e3", "", "inf"):
        with pytest.raises(InputError, match="--save-every"):
            Every(wish)


def test_never_removes_what_it_just_wrote_nor_other_files(tmp_path: Path) -> None:
    """A newer file that was damaged, and so skipped at the resume, must not count as one of the last n."""
    (tmp_path / checkpoint_name(9)).write_bytes(b"damaged")
    (tmp_path / "model_best.pth.tar").write_bytes(b"someone else's")
    saver = Saver(tmp_path, keep_last=1)
    for epoch in (3, 4):
        saver.submit(state(epoch), checkpoint_name(epoch))
    saver.wait()
    assert names(tmp_path) == [checkpoint_name(4), checkpoint_name(9)]
    assert latest(tmp_path)[0] == tmp_path / checkpoint_name(4)
    assert (tmp_path / "model_best.pth.tar").exists()


def test_a_failed_save_removes_no_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Saver(tmp_path, keep_last=1)
    saver.submit(state(), checkpoint_name(0))
    saver.wait()

    def full(path: Path, state: dict[str, Any]) -> None:
        raise InputError("no room")

    monkeypatch.setattr(saver_module, "save", full)
    saver.submit(state(), checkpoint_name(1))
    with pytest.raises(InputError, match="no room"):
        saver.wait()
    assert names(tmp_path) == [checkpoint_name(0)]


def test_starts_with_a_clean_folder(tmp_path: Path) -> None:
    """Half-written files of killed saves go; nothing else does."""
    for name in (".checkpoint_0003.pth.tar.n1.77.saving", "log.jsonl", "checkpoint_0002.pth.tar"):
        (tmp_path / name).write_bytes(b"x")
    Saver(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_0002.pth.tar", "log.jsonl"]


def test_submit_reports_the_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldBack(monkeypatch)
    saver = Saver(tmp_path)
    first = saver.submit(state(), checkpoint_name(0))
    threading.Timer(0.2, held.release.set).start()
    second = saver.submit(state(), checkpoint_name(1))
    assert 0 <= first < second
    assert second >= 0.1
    saver.wait()
