"""The place of this process among the ranks of a run.

Imports no torch, because every command imports it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Holds the rank of this process and the number of ranks.

    The default is one rank.
    local_rank, local_size: the same among the ranks of this node.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def launched(cls) -> World:
        """Reads the variables that torchrun sets; one rank without them.

        A task of srun has ranks too if its script sets these variables.
        """
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        size = int(os.environ["WORLD_SIZE"])
        return cls(
            rank=int(os.environ["RANK"]),
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        )


_current = World()


def current() -> World:
    """Returns the world of the running session.

    Outside of a session it is one rank.
    """
    return _current


def own_cores() -> int:
    """Returns this process's share of the CPU cores, at least 1.

    The ranks of a node share the cores that the process may run on.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _current.local_size)


@contextlib.contextmanager
def inside(world: World) -> Iterator[None]:
    """Makes `world` the current one for a `with` block."""
    global _current
    before = _current
    _current = world
    try:
        yield
    finally:
        _current = before
