"""Checkpoint files: bit-identical when read, refused when damaged, and never lost by a save that dies half-way."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from moco.errors import InputError
from moco.run import checkpoint
from moco.run.checkpoint import checkpoint_name, latest, load, position, save, set_aside, verify
from moco.run.files import remove_temporaries


def state(number: int = 0, size: int = 500) -> dict[str, Any]:
    """A small checkpoint whose every byte depends on `number`, with each kind of value that a run saves."""
    generator = torch.Generator().manual_seed(number)
    return {
        "epoch": number,
        "arch": "smallcnn",
        "state_dict": {
            "module.queue": torch.randn(8, size, generator=generator),
            "module.queue_ptr": torch.tensor([number]),
            "half": torch.randn(5, generator=generator).to(torch.bfloat16),
            "transposed": torch.randn(3, 4, generator=generator).T,
            "empty": torch.zeros(0),
        },
        "moco_run": {
            "lr": 0.03,
            "nan": float("nan"),
            "list": [1, (2.5, "x"), None, True],
            "rng": generator.get_state(),
        },
    }


def same(a: Any, b: Any) -> bool:
    """Equal types, values and bits (NaN included)."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.contiguous()
            .view(torch.uint8 if a.numel() else a.dtype)
            .equal(b.contiguous().view(torch.uint8 if b.numel() else b.dtype))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and repr(a) == repr(b)


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process; its wait status (negative: the signal that killed it; 99: an exception)."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob(".*.saving"))


# -- what is written is what is read, here and by others ---------------------------------------------------------------


def test_reads_back_bit_identical(tmp_path: Path) -> None:
    path = tmp_path / checkpoint_name(0)
    save(path, state())
    assert same(load(path), state())
    assert temporaries(tmp_path) == []


def test_other_readers_open_it(tmp_path: Path) -> None:
    """Plain torch.load, with and without mmap, and zipfile: the checksum must be invisible to them."""
    path = tmp_path / checkpoint_name(0)
    save(path, state())
    for arguments in ({}, {"mmap": True}, {"weights_only": True}):
        assert same(torch.load(path, **arguments), state())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256-of-all-bytes-before:")


def test_other_projects_files_are_read(tmp_path: Path) -> None:
    """MoCo's released files are in torch's format before 1.6; newer projects' are plain torch.save archives."""
    for name, new in (("old", False), ("new", True)):
        torch.save(state(3), tmp_path / name, _use_new_zipfile_serialization=new)
        assert same(load(tmp_path / name), state(3))


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    import numpy as np

    with pytest.raises(TypeError, match=r"state\['rng'\]\[1\] is a ndarray"):
        save(tmp_path / "x", {"rng": ["MT19937", np.zeros(3)]})
    assert list(tmp_path.iterdir()) == []


# -- damage is found ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of one checkpoint of ours and of the same state as another project would save it."""
    folder = tmp_path_factory.mktemp("samples")
    save(folder / "ours", state(size=20))
    torch.save(state(size=20), folder / "foreign")
    return {name: (folder / name).read_bytes() for name in ("ours", "foreign")}


@settings(max_examples=250)
@given(data=st.data(), which=st.sampled_from(["ours", "foreign"]))
def test_damaged_bytes_are_refused_or_harmless(
    data: st.DataObject, which: str, samples: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any range of bytes flipped, or cut off, or cut out: an InputError, or the same content to the bit."""
    original = samples[which]
    start = data.draw(st.integers(0, len(original) - 1))
    length = data.draw(st.one_of(st.integers(1, 8), st.integers(1, len(original) - start)))
    kind = data.draw(st.sampled_from(["flip", "truncate", "cut out", "random"]))
    damaged = bytearray(original)
    if kind == "flip":
        damaged[start] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "truncate":
        del damaged[start:]
    elif kind == "cut out":
        del damaged[start : start + length]
    else:
        noise = data.draw(st.binary(min_size=1, max_size=16))
        damaged[start : start + length] = (noise * (length // len(noise) + 1))[: len(original[start : start + length])]
    path = tmp_path_factory.getbasetemp() / "damaged.pth.tar"
    path.write_bytes(damaged)
    for read in (verify, load):
        with contextlib.suppress(InputError):
            content = read(path)
            assert content is None or same(content, state(size=20))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=100)
@given(content=st.binary(max_size=300))
@example(content=b"")
@example(content=b"PK\x03\x04")
@example(content=b"PK\x05\x06" + bytes(18))
@example(content=pickle.dumps({"epoch": 3}))
@example(content=b"\x89PNG\r\n\x1a\n")
def test_any_bytes_at_all(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.pth.tar"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert isinstance(load(path), dict)


@pytest.mark.parametrize("position_of_flip", ["weight", "checksum"])
def test_one_flipped_bit(tmp_path: Path, position_of_flip: str) -> None:
    """In a weight, where torch.load alone would hand it out without a word, and in the checksum itself."""
    path = tmp_path / checkpoint_name(0)
    save(path, state())
    content = bytearray(path.read_bytes())
    weight = content.index(state()["state_dict"]["module.queue"].numpy().tobytes()[:64])
    content[weight + 10 if position_of_flip == "weight" else -1] ^= 1
    path.write_bytes(content)
    if position_of_flip == "weight":
        assert not same(torch.load(path), state())
    with pytest.raises(InputError, match="do not match its checksum"):
        load(path)
    with pytest.raises(InputError, match="checksum"):
        verify(path)


def test_each_bad_file_gets_its_own_sentence(tmp_path: Path) -> None:
    def file(content: bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(content)
        return path

    save(tmp_path / "good", state())
    good = (tmp_path / "good").read_bytes()
    torch.save(torch.zeros(3), tmp_path / "tensor")
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("readme.txt", "hello")
    cases: list[tuple[Path, str]] = [
        (tmp_path / "nowhere", "there is no checkpoint"),
        (tmp_path, "Is a directory"),
        (tmp_path / "good" / "x", "Not a directory"),
        (tmp_path / "tensor", "holds a Tensor, not a checkpoint"),
        (tmp_path / "archive", "is not a checkpoint that torch can read"),
    ]
    for path, message in cases:
        with pytest.raises(InputError, match=message):
            load(path)
    for content, message in (
        (b"", "is empty"),
        (good[: len(good) // 2], "is cut short"),
        (good[:-1], "is cut short"),
        (b"hello world, this is no checkpoint", "is not a checkpoint that torch can read"),
    ):
        with pytest.raises(InputError, match=message):
            load(file(content))


class RunsCode:
    """What an attacker would put into a file: unpickling it calls a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["MOCO_TEST_FOLDER"],)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool
) -> None:
    monkeypatch.setenv("MOCO_TEST_FOLDER", str(tmp_path / "made by the attacker"))
    path = tmp_path / checkpoint_name(0)
    torch.save({"epoch": 1, "state_dict": RunsCode()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError, match=r"refused.*posix\.mkdir.*could run code"):
        load(path)
    assert not (tmp_path / "made by the attacker").exists()
    assert latest(tmp_path)[0] is None


# -- a save that dies leaves the previous file -------------------------------------------------------------------------


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    path = tmp_path / checkpoint_name(7)
    save(path, state(1))
    return path


@pytest.mark.parametrize("tenth", range(10))
def test_killed_while_writing(previous: Path, tenth: int) -> None:
    """The kernel kills the process when the file passes a size limit: at ten places from its first byte to its last."""
    size = previous.stat().st_size
    limit = 1 + tenth * (size - 1) // 9 - (tenth == 9)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        save(previous, state(2))

    assert in_child(work) == -signal.SIGXFSZ
    assert same(load(previous), state(1))
    assert len(temporaries(previous.parent)) == 1
    remove_temporaries(previous.parent)
    assert list(previous.parent.iterdir()) == [previous]


@pytest.mark.parametrize(
    ("call", "occurrence", "survivor"),
    [("fsync", 1, 1), ("replace", 1, 1), ("open", 1, 2), ("fsync", 2, 2), ("unlink", 1, 2)],
    ids=["before the file is synced", "before the rename", "after the rename", "at the folder's sync", "at the end"],
)
def test_killed_between_the_steps_of_a_save(previous: Path, call: str, occurrence: int, survivor: int) -> None:
    """SIGKILL just before a system call of `save`: the old file up to the rename, the new one from there."""

    def work() -> None:
        module: Any = Path if call == "unlink" else os
        original, left = getattr(module, call), [occurrence]

        def deadly(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        setattr(module, call, deadly)
        save(previous, state(2))

    assert in_child(work) == -signal.SIGKILL
    assert same(load(previous), state(survivor))


def test_synced_in_the_order_that_survives_a_power_cut(previous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can cut the power; what can be seen is the order: file's data, then the name, then the folder."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append("sync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync file")
        fsync(descriptor)

    def spy_replace(source: Any, target: Any) -> None:
        calls.append("rename")
        assert os.path.dirname(source) == os.path.dirname(target)
        verify(source)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    save(previous, state(2))
    assert calls == ["sync file", "rename", "sync folder"]


def test_file_size_limit_reached(previous: Path) -> None:
    """As with a full quota: write() fails in the middle of the file. One error, no litter, the previous file intact."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with pytest.raises(InputError, match=r"File too large; make room .* --resume auto"):
            save(previous, state(2))

    assert in_child(work) == 0
    assert same(load(previous), state(1))
    assert list(previous.parent.iterdir()) == [previous]


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(tmp_path: Path) -> None:
    """On a real file system without room: the old file is kept, the half-written one goes, and then there is room."""
    folder = tmp_path / "disk"
    with small_disk(folder, 512):
        path = folder / checkpoint_name(0)
        save(path, state(1, size=9000))  # 288 kB: a second one does not fit beside it
        with pytest.raises(InputError, match="No space left on device; make room"):
            save(path, state(2, size=9000))
        assert same(load(path), state(1, size=9000))
        assert list(folder.iterdir()) == [path]
        save(folder / checkpoint_name(1), state(3))


def test_read_only_folder(previous: Path) -> None:
    folder = previous.parent
    content = previous.read_bytes()

    def work() -> None:
        os.chdir(folder)
        if os.geteuid() == 0:  # permissions do not hold for root
            os.setuid(65534)
        with pytest.raises(InputError, match="Permission denied"):
            save(previous.name, state(2))

    folder.chmod(0o555)
    try:
        assert in_child(work) == 0
        assert previous.read_bytes() == content
        assert list(folder.iterdir()) == [previous]
    finally:
        folder.chmod(0o755)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere" / "x", tmp_path / "file" / "x"):
        with pytest.raises(InputError, match="cannot write"):
            save(path, state())


# -- which one to go on from -------------------------------------------------------------------------------------------


def test_names_and_positions() -> None:
    """MoCo's name for an epoch's end; inside an epoch a name of its own; the order is that of training."""
    assert checkpoint_name(199) == "checkpoint_0199.pth.tar"
    places: list[tuple[int, int | None]] = [(2, 50), (1, None), (0, 1000), (0, None), (1, 7)]
    names = [checkpoint_name(*place) for place in places]
    assert sorted(names, key=lambda name: position(name) or (-1, -1)) == [
        "checkpoint_0000_001000.pth.tar",
        "checkpoint_0000.pth.tar",
        "checkpoint_0001_000007.pth.tar",
        "checkpoint_0001.pth.tar",
        "checkpoint_0002_000050.pth.tar",
    ]
    assert position("checkpoint.pth.tar") is None
    assert position(".checkpoint_0001.pth.tar.host.12.saving") is None
    assert position("checkpoint_0001.pth.tar.aside") is None


def test_latest_takes_the_newest_that_verifies_and_says_why_not_the_others(tmp_path: Path) -> None:
    for epoch in range(3):
        save(tmp_path / checkpoint_name(epoch), state(epoch))
    newest, emptied, flipped = (tmp_path / checkpoint_name(3, step) for step in (30, 20, 10))
    newest.write_bytes((tmp_path / checkpoint_name(2)).read_bytes()[:-100])
    emptied.write_bytes(b"")
    content = bytearray((tmp_path / checkpoint_name(2)).read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    path, skipped = latest(tmp_path)
    assert path == tmp_path / checkpoint_name(2)
    assert [bad for bad, _ in skipped] == [newest, emptied, flipped]
    for (bad, reason), word in zip(skipped, ["cut short", "empty", "checksum"], strict=True):
        assert str(bad) in reason and word in reason


def test_latest_of_nothing(tmp_path: Path) -> None:
    assert latest(tmp_path) == (None, [])
    assert latest(tmp_path / "nowhere") == (None, [])
    (tmp_path / "notes.txt").write_text("no checkpoint")
    assert latest(tmp_path) == (None, [])


def test_newest_is_by_training_not_by_clock(tmp_path: Path) -> None:
    save(tmp_path / checkpoint_name(5), state(5))
    save(tmp_path / checkpoint_name(4), state(4))
    os.utime(tmp_path / checkpoint_name(5), (0, 0))
    assert latest(tmp_path)[0] == tmp_path / checkpoint_name(5)


def test_set_aside(tmp_path: Path) -> None:
    """A run that goes on from an older file must not find the abandoned future when it is resumed next."""
    for name in (checkpoint_name(0), checkpoint_name(1, 5), checkpoint_name(1), checkpoint_name(2, 5)):
        save(tmp_path / name, state())
    renamed = set_aside(tmp_path, after=(1, 5))
    assert [path.name for path in renamed] == ["checkpoint_0001.pth.tar.aside", "checkpoint_0002_000005.pth.tar.aside"]
    assert latest(tmp_path)[0] == tmp_path / checkpoint_name(1, 5)
    for path in renamed:
        verify(path)


def test_unknown_trouble_is_not_hidden(previous: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is nobody's input (a bug) passes through `save` as it is, and still leaves nothing behind."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint.torch, "save", broken)
    with pytest.raises(ZeroDivisionError):
        save(previous, state(2))
    assert list(previous.parent.iterdir()) == [previous]
