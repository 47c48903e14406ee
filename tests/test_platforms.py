"""What macOS and Windows lack is taken away from a process, which then trains. No such machine is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from moco.data.threads import worker_count
from moco.run import lock, meter

ROOT = Path(__file__).resolve().parent.parent

# Run before anything is imported. {gone} are modules, {names} attributes as "module.name".
TAKE_AWAY = """
import builtins, importlib, io, os, pathlib, sys
for name in {gone!r}:
    sys.modules[name] = None
for name in {names!r}:
    module, _, attribute = name.partition(".")
    delattr(importlib.import_module(module), attribute)
really = io.open
def without_proc(path, *rest, **how):
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
    if name.startswith("/proc") and name != "/proc/self/maps":  # read by libraries, on Linux alone
        raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
    return really(path, *rest, **how)
io.open = builtins.open = without_proc
from moco.pretrain.__main__ import main
sys.exit(main())
"""
SYSTEMS = {
    "macOS": ([], ["os.sched_getaffinity", "os.posix_fadvise"]),
    "Windows": (
        ["resource", "fcntl"],
        ["os.sched_getaffinity", "os.posix_fadvise", "os.preadv", "signal.SIGUSR1", "signal.SIGUSR2"],
    ),
}
TRAIN = "--dataset digits -a smallcnn --epochs 1 -b 256 --moco-k 64 --eval-freq 0 --output-dir run"


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_trains_without_what_the_system_lacks(system: str, tmp_path: Path) -> None:
    gone, names = SYSTEMS[system]
    code = TAKE_AWAY.format(gone=gone, names=names)
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *TRAIN.split()]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    memory = [record["timing"]["memory_gb"] for record in records if "memory_gb" in record.get("timing", {})]
    assert memory and all((value == "NaN") == (system == "Windows") for value in memory)


def test_the_unit_of_peak_memory_follows_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(meter.platform, "system", lambda: "Linux")
    assert meter.peak_memory() >= kib * 1024
    monkeypatch.setattr(meter.platform, "system", lambda: "Darwin")
    assert kib <= meter.peak_memory() < kib * 1024


def test_on_windows_no_signal_asks_whether_a_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signal 0 is Ctrl-C there, and would end the process that is asked about."""

    def kill(pid: int, number: int) -> None:
        pytest.fail("a signal was sent")

    monkeypatch.setattr(lock, "os", SimpleNamespace(name="nt", kill=kill))
    monkeypatch.setattr(lock, "_read", lambda path: "")
    monkeypatch.setattr(lock, "Path", lambda path: SimpleNamespace(exists=lambda: False))
    assert lock.process_start(1) == "unknown"


def test_without_affinity_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert worker_count() == 6
