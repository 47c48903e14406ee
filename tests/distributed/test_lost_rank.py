"""Ranks that start find each other, and nobody of an earlier start, in a store that remembers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from moco.distributed.lost_rank import name_of_start
from moco.errors import RankError

LIMIT = timedelta(seconds=60)


def start(store: dist.Store, world_size: int, first: int = 0) -> set[str]:
    """The names that the ranks learn; they come in the order `first`, `first` + 1, ..., 0, ..."""
    with ThreadPoolExecutor(world_size) as pool:
        order = [(first + i) % world_size for i in range(world_size)]
        return set(pool.map(lambda rank: name_of_start(store, rank, world_size, LIMIT), order))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_all_ranks_learn_one_name_and_another_at_each_start(first: int) -> None:
    store, names = dist.HashStore(), set()
    for _ in range(5):
        found = start(store, 3, first)
        assert len(found) == 1
        names |= found
    assert len(names) == 5


def test_a_start_that_came_to_nothing_is_not_joined() -> None:
    """Rank 1 had asked, and died before rank 0 was there; or rank 0 alone had come."""
    store = dist.HashStore()
    store.set("moco/asks/1", "the dead")
    assert len(start(store, 2)) == 1
    with pytest.raises(RankError, match=r"ranks 1, 2 did not start within 0:00:00"):
        name_of_start(store, 0, 3, timedelta(0))
    assert len(start(store, 3)) == 1
