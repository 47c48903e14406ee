"""Saves checkpoints while training goes on.

`submit` copies the state to the host, and a thread writes the copy. PyTorch's own asynchronous checkpointing belongs to
its distributed format of many files. Here one thread of global rank 0 writes one file in MoCo's layout.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from moco.errors import InputError
from moco.run.checkpoint import checkpoints, position, save
from moco.run.files import remove_temporaries


def host_copy(state: Any) -> Any:
    """Copies every tensor of `state` to the CPU.

    Later steps cannot change the copies. It waits once for the GPU.
    """
    copied, on_gpu = _copied(state)
    if on_gpu:
        torch.cuda.current_stream().synchronize()
    return copied


def host_like(value: torch.Tensor, pin_memory: bool = True) -> torch.Tensor:
    """Allocates host memory with the shape, dtype and memory format of `value`.

    It is uninitialised. Fused kernels on a GPU refuse a momentum whose format differs from its weight's. torch keeps
    the pinned block for the next save.
    """
    return torch.empty_like(value, device="cpu", pin_memory=pin_memory, memory_format=torch.preserve_format)


def _copied(value: Any) -> tuple[Any, bool]:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if not value.is_cuda:
            return value.clone(), False
        return host_like(value).copy_(value, non_blocking=True), True
    if isinstance(value, dict):
        pairs = {key: _copied(entry) for key, entry in value.items()}
        return {key: entry for key, (entry, _) in pairs.items()}, any(on_gpu for _, on_gpu in pairs.values())
    if isinstance(value, (list, tuple)):
        parts = [_copied(entry) for entry in value]
        return type(value)(entry for entry, _ in parts), any(on_gpu for _, on_gpu in parts)
    return value, False


class Every:
    """Decides when to save inside an epoch.

    `wish` is '500' (steps), '30m' (minutes) or None (never). InputError for any other.

    By steps all ranks decide the same. By minutes each rank has its own clock, so the ranks must vote
    (`distributed.LateVote`).
    """

    def __init__(self, wish: str | None):
        self.steps = 0
        self.seconds = 0.0
        if wish is not None:
            match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)m", wish, re.ASCII)
            steps, minutes = match.groups() if match else (None, None)
            self.steps = int(steps or 0)
            self.seconds = float(minutes or 0) * 60
            if not self.steps and not self.seconds:
                raise InputError(f"--save-every takes steps, as in 500, or minutes, as in 30m; {wish!r} is neither")
        self.saved()

    @property
    def by_clock(self) -> bool:
        return self.seconds > 0

    def due(self, global_step: int) -> bool:
        if self.seconds:
            return time.monotonic() - self._last >= self.seconds
        return self.steps > 0 and global_step % self.steps == 0

    def saved(self) -> None:
        self._last = time.monotonic()


class Saver:
    """Writes checkpoints into `folder` and deletes old ones.

    It keeps the last `keep_last`, and those after every `keep_every` epochs (0: none of these). With keep_last 0 it
    keeps every epoch's checkpoint, and the last two files of all kinds.

    It never deletes a file newer than the one just written; a run that resumed from an earlier position can find such
    files. It first removes temporary files of a killed run, so the caller must hold the folder's RunLock. The next
    `submit` or `wait` raises an error of the thread.
    """

    def __init__(self, folder: str | Path, keep_last: int = 0, keep_every: int = 0):
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.keep_every = keep_every
        remove_temporaries(self.folder)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._writing: Future[None] | None = None

    def submit(self, state: dict[str, Any], name: str) -> float:
        """Starts to write `state` as `name`.

        Returns the seconds that the earlier write and the copy held up the caller.
        """
        start = time.perf_counter()
        self.wait()
        copied = host_copy(state)
        self._writing = self._thread.submit(self._write, copied, self.folder / name)
        return time.perf_counter() - start

    def wait(self) -> None:
        """Waits until the submitted state is on disk; raises the thread's error.

        InputError if the file was not writable.
        """
        writing = self._writing
        self._writing = None
        if writing is not None:
            writing.result()

    def _write(self, state: dict[str, Any], path: Path) -> None:
        save(path, state)
        self._prune(path)

    def _prune(self, newest: Path) -> None:
        written = position(newest)
        if written is None:
            return
        places = {path: position(path) or written for path in checkpoints(self.folder)}
        older = sorted((path for path, place in places.items() if place <= written), key=places.__getitem__)
        for path in older[: -(self.keep_last or 2)]:
            epochs, step = places[path]
            if step or (self.keep_last and not (self.keep_every and epochs % self.keep_every == 0)):
                path.unlink(missing_ok=True)
