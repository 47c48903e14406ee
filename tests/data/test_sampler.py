"""The order of samples: one permutation per epoch, the same global batches for any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from moco.data.sampler import Sampler
from moco.errors import InputError

SHAPES = {"n": st.integers(1, 60), "batch": st.integers(1, 20), "world": st.integers(1, 8), "epoch": st.integers(0, 5)}


def parts(epoch: int, step: int, world: int, *args: int, **options: bool) -> list[np.ndarray]:
    return [Sampler(*args, rank=r, world_size=world, **options).batch(epoch, step) for r in range(world)]


@given(**SHAPES, drop_last=st.booleans(), shuffle=st.booleans())
def test_ranks_share_the_same_global_batch(
    n: int, batch: int, world: int, epoch: int, drop_last: bool, shuffle: bool
) -> None:
    assume(batch >= world and (n >= batch or not drop_last))
    options = {"drop_last": drop_last, "shuffle": shuffle}
    alone = Sampler(n, batch, 7, **options)
    for step in range(alone.steps):
        shared = parts(epoch, step, world, n, batch, 7, **options)
        assert np.array_equal(np.concatenate(shared), alone.global_batch(epoch, step))
        sizes = Sampler(n, batch, 7, world_size=world, **options).sizes(step)
        assert sizes == [len(part) for part in shared]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)


@given(**SHAPES)
def test_every_sample_once_and_a_short_last_batch(n: int, batch: int, world: int, epoch: int) -> None:
    sampler = Sampler(n, batch, 0, drop_last=False)
    seen = [sampler.global_batch(epoch, step) for step in range(sampler.steps)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(n))
    assert [len(b) for b in seen[:-1]] == [batch] * (len(seen) - 1)


@given(**SHAPES)
def test_drop_last_drops_the_remainder_only(n: int, batch: int, world: int, epoch: int) -> None:
    assume(n >= batch)
    sampler = Sampler(n, batch, 0)
    seen = np.concatenate([sampler.global_batch(epoch, step) for step in range(sampler.steps)])
    assert sampler.steps == n // batch
    assert len(seen) == len(set(seen.tolist())) == n // batch * batch
    assert np.array_equal(seen, sampler.order(epoch)[: len(seen)])


def test_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): tuple(Sampler(40, 4, seed).order(epoch).tolist()) for seed in range(3) for epoch in range(3)
    }
    assert len(set(orders.values())) == 9
    sampler = Sampler(40, 4, 1)
    assert [tuple(sampler.order(e).tolist()) for e in (2, 0, 2)] == [orders[1, 2], orders[1, 0], orders[1, 2]]


def test_without_shuffle_the_order_is_the_data_sets() -> None:
    sampler = Sampler(10, 3, 5, shuffle=False, drop_last=False)
    assert [sampler.batch(e, 1).tolist() for e in (0, 9)] == [[3, 4, 5], [3, 4, 5]]


def test_a_short_last_batch_may_leave_a_rank_without_samples() -> None:
    assert [len(part) for part in parts(0, 1, 4, 10, 8, 0, drop_last=False)] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("n", "batch", "world", "fix"),
    [(0, 4, 1, "empty"), (10, 0, 1, "--batch-size 1"), (10, 3, 4, "--batch-size 4"), (10, 11, 1, "--batch-size 10")],
)
def test_impossible_wishes_name_the_fix(n: int, batch: int, world: int, fix: str) -> None:
    with pytest.raises(InputError, match=fix):
        Sampler(n, batch, 0, world_size=world)


def test_a_step_outside_the_epoch_is_an_error() -> None:
    for step in (-1, 2):
        with pytest.raises(IndexError):
            Sampler(10, 4, 0).global_batch(0, step)
