"""Finds the rank that failed when ranks lose each other."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from datetime import timedelta
from typing import Protocol

from moco.errors import RankError


class Store(Protocol):
    """The part of torch.distributed.Store that is used here. Every call may raise a RuntimeError."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


def name_of_start(store: Store, rank: int, world_size: int, limit: timedelta) -> str:
    """A word that all ranks of this start know, and those of no earlier one.

    RankError if they are not all there in time.

    torchrun's store outlives a restart, with the addresses that the earlier ranks left there, and nothing in the
    environment names the start: each agent counts its own restarts. So every rank asks under a name it has made up;
    rank 0 answers whoever asks, the dead of earlier starts too, until all have confirmed the word of this start.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + limit.total_seconds()
    if rank != 0:
        store.set(f"moco/asks/{rank}", mine)
        word = store.get(f"moco/answer to {mine}").decode()
        store.set(f"moco/{word}/{rank} knows", "")
        return word
    waiting, answered = set(range(1, world_size)), set()
    while waiting:
        for r in sorted(waiting):
            if store.check([f"moco/{mine}/{r} knows"]):
                waiting.discard(r)
            elif store.check([f"moco/asks/{r}"]) and (name := store.get(f"moco/asks/{r}").decode()) not in answered:
                store.set(f"moco/answer to {name}", mine)
                answered.add(name)
        if time.monotonic() > deadline:
            raise RankError(f"ranks {', '.join(map(str, sorted(waiting)))} did not start within {limit}")
        time.sleep(0.01)
    return mine


class RollCall:
    """Finds out which rank is to blame when a collective fails.

    The error that a rank sees names a socket. But every rank that sees one, or ends for a reason of its own, can still
    leave a note in the store (torchrun's agent keeps it); the rank without a note is the one that hangs or was killed.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size

    def say(self, note: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store may be gone with rank 0: then nobody can be told
            self._store.set(str(self._rank), note[:500])

    def who_is_missing(self, limit: timedelta, error: str, patience: float = 5.0) -> str:
        """One sentence for a RankError."""
        notes: dict[int, str] = {}
        asking = threading.Thread(target=self._collect, args=(notes, patience), daemon=True)
        asking.start()
        asking.join(2 * patience)  # torch's store waits without a limit if the process that keeps it hangs
        silent = [r for r in range(self._world_size) if r not in notes] if notes else [0]
        blame = [f"rank {r} {note}" for r, note in notes.items() if note]
        if silent:
            names = f"rank {silent[0]} does" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))} do"
            blame.insert(0, f"{names} not answer (killed, or hung for {limit})")
        what = "; ".join(blame) or f"the ranks lost each other: {error}"
        return f"{what}; the last checkpoint is good: start all ranks again with --resume auto"

    def _collect(self, notes: dict[int, str], patience: float) -> None:
        deadline = time.monotonic() + patience
        with contextlib.suppress(RuntimeError):
            self._store.set(str(self._rank), "")
            while len(notes) < self._world_size and time.monotonic() < deadline:
                for r in range(self._world_size):
                    if r not in notes and self._store.check([str(r)]):
                        notes[r] = self._store.get(str(r)).decode()
                time.sleep(0.05)
