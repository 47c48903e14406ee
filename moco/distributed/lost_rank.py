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
    """Declares the methods of torch.distributed.Store that are used here.

    Calls may raise RuntimeError.
    """

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


def name_of_start(store: Store, rank: int, world_size: int, limit: timedelta) -> str:
    """Agrees on a random name for this start of all ranks.

    RankError if a rank does not start within `limit`.

    torchrun's store keeps its entries over a restart, also the addresses of the earlier ranks. No environment variable
    identifies a start, because each agent counts its own restarts. So every rank asks with a random name. Rank 0
    answers every request, also old ones, until all ranks have confirmed the name of this start.
    """
    mine = uuid.uuid4().hex
    deadline = time.monotonic() + limit.total_seconds()
    if rank != 0:
        store.set(f"moco/asks/{rank}", mine)
        word = store.get(f"moco/answer to {mine}").decode()
        store.set(f"moco/{word}/{rank} knows", "")
        return word
    waiting = set(range(1, world_size))
    answered = set()
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
    """Finds the rank that caused a failed collective.

    The error of a collective names only a socket. So each rank that gets one, or ends for another reason, writes a note
    to the store, which torchrun's agent keeps. The rank without a note hangs or was killed.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size

    def say(self, note: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store may have ended with rank 0: then no note can be written
            self._store.set(str(self._rank), note[:500])

    def who_is_missing(self, limit: timedelta, error: str, patience: float = 5.0) -> str:
        """Returns the message of a RankError, one sentence.

        It names the ranks without a note, and quotes the notes of the others. limit: the time limit of collectives.
        error: the message of the failed collective. patience: seconds to wait for notes.
        """
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
