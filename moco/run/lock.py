"""Locks an output folder for one run.

flock would be simpler, but on many network file systems it is silently local, or missing, and clusters keep their runs
there. So the lock is a file `.lock` that names its holder. link(2) makes it, which succeeds for exactly one caller on
NFS too. The lock does not block a new run if its holder

- ran on this machine, and no process has its id and start time any more (killed, or ended by torchrun --max-restarts);
- ran on this machine before it was last started;
- was an earlier start of this Slurm job (same SLURM_JOB_ID, other SLURM_RESTART_COUNT: requeued, maybe elsewhere);
- has not refreshed the file for STALE_S seconds (a dead node). A thread refreshes it every BEAT_S. The file server's
  clock gives the age, so nodes need not agree on the time.

Otherwise the second run is refused with an InputError that names the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moco import distributed
from moco.errors import InputError

BEAT_S = 20.0
STALE_S = 300.0


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Returns when process `pid` started, by the kernel; "" if dead.

    The time tells a new process from an old one with the same id.
    """
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name before ")" may hold anything
    if fields:
        return "" if fields[0] in ("Z", "X") else fields[19]  # a zombie, whose parent has not waited for it, is dead
    if Path("/proc/self/stat").exists():
        return ""
    if os.name == "nt":  # on Windows signal 0 is Ctrl-C; the heartbeat alone decides
        return "unknown"
    try:  # without /proc (macOS) it is only known whether the id is in use
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "unknown"


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # a process id has a meaning only in its own container
    except OSError:
        return ""


class RunLock:
    """Locks an output folder for one run.

    Use `with RunLock(folder):` on global rank 0. InputError if a running process holds the lock.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / ".lock"
        self.taken_from: str | None = None  # why an old lock did not block, for the log
        self._me = {
            "host": socket.gethostname(),
            "boot": _read("/proc/sys/kernel/random/boot_id"),
            "namespace": _namespace(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
            "token": secrets.token_hex(8),
        }
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self) -> None:
        mine = self.path.with_name(f".lock.{self._me['token']}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            mine.write_text(json.dumps(self._me))
        except OSError as error:
            with contextlib.suppress(OSError):
                mine.unlink()
            raise InputError(
                f"cannot write into {self.path.parent}: {error.strerror}; make room, fix its permissions or choose"
                " another --output-dir"
            ) from error
        try:
            self._take(self.path, mine)
        finally:
            mine.unlink(missing_ok=True)
        self._beating = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beating.start()

    def release(self) -> None:
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
            if self.held():
                self.path.unlink(missing_ok=True)

    def held(self) -> bool:
        """Returns False if another run took the lock (see STALE_S)."""
        return _holder(self.path).get("token") == self._me["token"]

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self, path: Path, mine: Path) -> None:
        """Makes `path` a link to `mine`. InputError if it is held.

        A dead run's file is replaced by rename, so that `path` exists at every moment. Several processes may judge the
        same file dead. Only one of them may replace it, and only while it is still the file that was judged. The right
        to replace it is a lock of its own, taken in the same way.
        """
        while not _link(mine, path):
            try:
                holder = _holder(path)
                why = self._dead(holder, path, mine)
            except FileNotFoundError:
                continue  # released in the meantime
            if why is None:
                raise InputError(_in_use(path, holder))
            right_to_replace = path.with_name(f".lock.{_digest(holder)}")
            self._take(right_to_replace, mine)
            try:
                if path.exists() and _holder(path) == holder:
                    copy = path.with_name(f".lock.{self._me['token']}.copy")
                    _link(mine, copy)
                    os.rename(copy, path)
                    self.taken_from = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}: {why}"
                    return
            finally:
                right_to_replace.unlink(missing_ok=True)

    def _dead(self, holder: dict[str, Any], path: Path, mine: Path) -> str | None:
        """Returns the reason why the holder cannot be running, or None."""
        me = self._me
        if holder.get("host") == me["host"] and holder.get("namespace") == me["namespace"]:
            if holder.get("boot") != me["boot"]:
                return "the machine has been restarted since"
            started = process_start(holder.get("pid", 0))
            return None if started and started == holder.get("started") else "the process is gone"
        if me["job"] and holder.get("job") == me["job"] and holder.get("restart") != me["restart"]:
            return f"Slurm job {me['job']} was requeued"
        os.utime(mine)
        age = mine.stat().st_mtime - path.stat().st_mtime
        return f"no sign of life for {age:.0f} s" if age > STALE_S else None

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                if self.held():
                    os.utime(self.path)
            except OSError:  # the file server does not answer now; the next beat tries again
                pass


def _link(source: Path, target: Path) -> bool:
    """Links `target` to `source`; False if it exists.

    Unlike open and write, the content is complete at once.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    return True


def _in_use(path: Path, holder: dict[str, Any]) -> str:
    host = holder.get("host", "?")
    process = holder.get("pid", "?")
    job = f", Slurm job {holder['job']}" if holder.get("job") else ""
    return (
        f"{path.parent} is in use by another run (host {host}, process {process}{job}); give this one its own"
        f" --output-dir, or delete {path} if that run is dead"
    )


def _digest(holder: dict[str, Any]) -> str:
    """Makes a name for one lock file from its content."""
    return hashlib.sha256(json.dumps(holder, sort_keys=True).encode()).hexdigest()[:16]


def _holder(path: Path) -> dict[str, Any]:
    """Reads a lock file; {} if it is missing or another program's."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds the folder's lock on rank 0 during a `with` block.

    InputError on all ranks if a running process holds it. Taking the lock of a dead run prints a note on stderr.
    """
    lock = RunLock(folder)
    distributed.on_rank_0(lock.acquire)
    if lock.taken_from:
        print(f"note: took over the lock of {folder} from {lock.taken_from}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        lock.release()
