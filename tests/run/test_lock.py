"""The folder's lock, with real processes: a living run keeps others out, a dead one does not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moco.errors import InputError
from moco.run import lock as runlock
from moco.run.lock import STALE_S, RunLock, process_start


@contextlib.contextmanager
def child(work: Callable[[], None]) -> Iterator[tuple[int, Callable[[], str]]]:
    """A forked process running `work`, whose prints to descriptor 1 can be read line by line; killed at the end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        status = 99
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as lines:
        try:
            yield pid, lambda: lines.readline().strip()
        finally:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def holds(folder: Path) -> Callable[[], None]:
    def work() -> None:
        with RunLock(folder):
            os.write(1, b"held\n")
            signal.pause()

    return work


def written_by(folder: Path, **changes: Any) -> dict[str, Any]:
    """Puts a lock file in place as another process would have left it."""
    lock = RunLock(folder)
    holder = {**lock._me, "token": "other", **changes}
    lock.path.write_text(json.dumps(holder))
    return holder


def test_second_run_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with child(holds(tmp_path)) as (pid, line):
        assert line() == "held"
        with pytest.raises(InputError, match=f"{tmp_path} is in use by another run.*{socket.gethostname()}.*{pid}"):
            RunLock(tmp_path).acquire()
        with pytest.raises(InputError):  # still: the refusal must not have broken the lock
            RunLock(tmp_path).acquire()


def test_free_after_release_and_nothing_left(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLock(tmp_path) as lock:
            assert lock.held()
            with pytest.raises(InputError):
                RunLock(tmp_path).acquire()
        assert list(tmp_path.iterdir()) == []


def test_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_makes_the_folder(tmp_path: Path) -> None:
    with RunLock(tmp_path / "runs" / "new"):
        assert (tmp_path / "runs" / "new" / ".lock").exists()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write into .*--output-dir"):
        RunLock(tmp_path / "file" / "run").acquire()


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_killed_run_does_not_block(tmp_path: Path, reaped: bool) -> None:
    """Also when nobody has waited for the dead process yet, as between a rank's death and torchrun's restart."""
    with child(holds(tmp_path)) as (pid, line):
        assert line() == "held"
        os.kill(pid, signal.SIGKILL)
        if reaped:
            os.waitpid(pid, 0)
        else:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with RunLock(tmp_path) as lock:
            assert lock.taken_from == f"process {pid} on {socket.gethostname()}: the process is gone"


def test_reused_process_id_does_not_block(tmp_path: Path) -> None:
    """The id lives, but it is another process: it started at another time."""
    written_by(tmp_path, pid=os.getpid(), started="12345")
    RunLock(tmp_path).acquire()


def test_machine_restarted_since(tmp_path: Path) -> None:
    written_by(tmp_path, boot="an earlier boot")
    with RunLock(tmp_path) as lock:
        assert "restarted" in str(lock.taken_from)


OTHER_NODE = {"host": "node17", "boot": "its own", "pid": 4242, "started": "99"}


def aged(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / ".lock", (then, then))


def test_dead_node(tmp_path: Path) -> None:
    """A lock of another machine holds as long as it is refreshed, and some minutes longer."""
    written_by(tmp_path, **OTHER_NODE)
    aged(tmp_path, STALE_S - 20)
    with pytest.raises(InputError, match=r"host node17, process 4242\)"):
        RunLock(tmp_path).acquire()
    aged(tmp_path, STALE_S + 20)
    with RunLock(tmp_path) as lock:
        assert "no sign of life" in str(lock.taken_from)


def test_container_on_the_same_machine(tmp_path: Path) -> None:
    """Its process ids say nothing here: only the refreshing counts."""
    written_by(tmp_path, pid=4_000_000, namespace="pid:[other]")
    with pytest.raises(InputError):
        RunLock(tmp_path).acquire()


def test_requeued_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requeued to another node at once: the lock is fresh, but its holder is this job's own earlier start."""
    written_by(tmp_path, **OTHER_NODE, job="77", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(InputError, match="Slurm job 77"):
        RunLock(tmp_path).acquire()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with RunLock(tmp_path) as lock:
        assert "Slurm job 77 was requeued" in str(lock.taken_from)


def test_two_runs_inside_one_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two job steps share the id without either being a restart of the other."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    written_by(tmp_path, **OTHER_NODE, job="77")
    with pytest.raises(InputError):
        RunLock(tmp_path).acquire()
    with child(holds(tmp_path / "here")) as (_, line):
        assert line() == "held"
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with pytest.raises(InputError):  # on this machine the living process is what counts
            RunLock(tmp_path / "here").acquire()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"pid": "x"}', "\0" * 100])
def test_lock_file_that_says_nothing(tmp_path: Path, content: str) -> None:
    """Left by a power cut, or not ours: in force until it is old."""
    (tmp_path / ".lock").write_text(content)
    with pytest.raises(InputError, match="delete"):
        RunLock(tmp_path).acquire()
    aged(tmp_path, STALE_S + 20)
    RunLock(tmp_path).acquire()


def test_is_refreshed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = []
    monkeypatch.setattr(runlock, "BEAT_S", 0.01)
    with RunLock(tmp_path) as lock:
        for _ in range(3):
            aged(tmp_path, 1000)
            deadline = time.monotonic() + 30
            while time.time() - lock.path.stat().st_mtime > 500 and time.monotonic() < deadline:
                time.sleep(0.01)
            beats.append(time.time() - lock.path.stat().st_mtime < 500)
    assert beats == [True] * 3


def test_notices_that_it_was_taken(tmp_path: Path) -> None:
    """A machine that stood still for long finds its lock in other hands, and leaves that one alone."""
    with RunLock(tmp_path) as lock:
        written_by(tmp_path)
        assert not lock.held()
    assert json.loads(lock.path.read_text())["token"] == "other"


@pytest.mark.parametrize("leftover", [True, False], ids=["dead lock", "no lock"])
def test_of_many_that_start_together_one_gets_it(tmp_path: Path, leftover: bool) -> None:
    """Eight processes let loose at one moment on a free folder, and on one with a dead run's lock, ten times each."""
    for _ in range(10):
        if leftover:
            written_by(tmp_path, pid=4_000_000)

        def work(gate: int = 0) -> None:
            os.read(gate, 1)
            try:
                RunLock(tmp_path).acquire()
            except InputError:
                os.write(1, b"refused\n")
            else:
                os.write(1, b"held\n")
            signal.pause()

        gate, opener = os.pipe()
        with contextlib.ExitStack() as stack:
            lines = [stack.enter_context(child(lambda: work(gate)))[1] for _ in range(8)]  # noqa: B023
            os.write(opener, b"x" * 8)
            assert sorted(line() for line in lines) == ["held"] + ["refused"] * 7
        os.close(gate)
        os.close(opener)
        (tmp_path / ".lock").unlink()
        assert list(tmp_path.iterdir()) == []


def test_a_dead_lock_is_replaced_without_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that judged the lock dead comes late: another has replaced it. No third one may get in meanwhile."""
    written_by(tmp_path, pid=4_000_000)
    first = RunLock(tmp_path)
    late = RunLock(tmp_path)
    judge = late._dead

    def judge_and_be_overtaken(*args: Any) -> str | None:
        verdict = judge(*args)
        monkeypatch.setattr(late, "_dead", judge)
        first.acquire()
        return verdict

    def third_is_refused() -> None:
        with monkeypatch.context() as patch:
            for name in ("link", "rename"):
                patch.setattr(os, name, real[name])
            with pytest.raises(InputError, match="in use"):
                RunLock(tmp_path).acquire()
        tried.append(True)

    def watched(name: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            real[name](*args)
            if first._beating is not None:
                third_is_refused()

        return call

    tried: list[bool] = []
    real = {name: getattr(os, name) for name in ("link", "rename")}
    for name in real:
        monkeypatch.setattr(os, name, watched(name))
    monkeypatch.setattr(late, "_dead", judge_and_be_overtaken)
    with pytest.raises(InputError, match="in use"):
        late.acquire()
    assert tried
    assert first.held()
    assert late.taken_from is None
    first.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_it_replaced_a_dead_lock_blocks_nobody(tmp_path: Path) -> None:
    dead = written_by(tmp_path, pid=4_000_000)
    left = tmp_path / f".lock.{runlock._digest(dead)}"
    left.write_text(json.dumps({**dead, "token": "killed", "pid": 4_000_001}))
    with RunLock(tmp_path) as lock:
        assert lock.held()
    assert list(tmp_path.iterdir()) == []


def test_process_start() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid()) != ""
    assert process_start(4_000_000) == ""


def test_a_lock_taken_from_a_dead_run_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with runlock.only_run_in(tmp_path):
        assert capsys.readouterr().err == ""
    written_by(tmp_path, boot="an earlier start")
    with runlock.only_run_in(tmp_path):
        told = capsys.readouterr().err
    assert told.startswith(f"note: took over the lock of {tmp_path} from process {os.getpid()} on ")
    assert told.endswith(": the machine has been restarted since\n")
