"""The keyed hash against a second implementation in plain Python, and what the rest of the project takes for granted
of it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from moco.randomness import Purpose, permutation, stream_key, uniform

M64 = (1 << 64) - 1
INDICES = st.lists(st.integers(0, 2**40), min_size=1, max_size=20)
KEYS = st.integers(0, M64)


def splitmix64(state: int) -> int:
    """One output of the published generator, which adds the golden gamma to its state and then mixes it."""
    z = (state + 0x9E3779B97F4A7C15) & M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def oracle(key: int, index: int, draw: int) -> float:
    """Output number `index` of the key's generator is the sample's own number; outputs that far on are its draws."""
    gamma = 0x9E3779B97F4A7C15
    own = splitmix64((key + gamma * index) & M64)
    return (splitmix64(gamma * (own + gamma * draw) & M64) >> 40) / 2**24


def test_splitmix64_itself() -> None:
    """First outputs for seed 1234567, as printed with the reference implementation in C (Vigna)."""
    gamma = 0x9E3779B97F4A7C15
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [splitmix64(1234567 + gamma * i & M64) for i in range(5)] == expected


@given(KEYS, INDICES, st.integers(1, 9))
def test_numpy_torch_and_python_agree_bit_for_bit(key: int, index: list[int], draws: int) -> None:
    from_numpy = uniform(key, np.array(index), draws)
    from_torch = uniform(key, torch.tensor(index), draws)
    from_python = [[oracle(key, i, d) for d in range(draws)] for i in index]
    assert from_numpy.dtype == np.float32
    assert from_torch.dtype == torch.float32
    assert np.array_equal(from_numpy, np.array(from_python))
    assert np.array_equal(from_torch.numpy(), from_numpy)


@pytest.mark.gpu
@given(KEYS, INDICES)
def test_the_gpu_agrees(key: int, index: list[int]) -> None:
    there = uniform(key, torch.tensor(index, device="cuda"), 5)
    assert torch.equal(there.cpu(), uniform(key, torch.tensor(index), 5))


@given(KEYS, INDICES, st.integers(1, 5), st.integers(0, 5))
def test_a_row_depends_on_its_index_alone(key: int, index: list[int], draws: int, more: int) -> None:
    together = uniform(key, np.array(index), draws + more)
    alone = np.concatenate([uniform(key, np.array([i]), draws) for i in index])
    assert np.array_equal(together[:, :draws], alone)


@given(KEYS, INDICES)
def test_numbers_lie_in_the_half_open_unit_interval(key: int, index: list[int]) -> None:
    values = uniform(key, np.array(index), 4)
    assert (values >= 0).all()
    assert (values < 1).all()


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from(Purpose), st.integers(0, 5)), max_size=50
    )
)
def test_different_coordinates_have_different_keys(coordinates: list[tuple[int, int, Purpose, int]]) -> None:
    """Swapping seed and epoch, or view and purpose, must not give the same stream either."""
    assert len({stream_key(*c) for c in coordinates}) == len(set(coordinates))


def test_keys_do_not_change_between_versions() -> None:
    """A run resumed with a later version must go on with the same stream. If this fails, the hash was changed."""
    assert stream_key(0, 0, Purpose.ORDER) == 2391539541053276776
    assert stream_key(7, 3, Purpose.CROP, 1) == 2580621091307578397
    assert permutation(2580621091307578397, 8).tolist() == [6, 1, 2, 7, 0, 3, 4, 5]


def test_negative_and_large_seeds_are_seeds() -> None:
    keys = {stream_key(seed, 0, Purpose.CROP) for seed in (-1, 0, 1, 2**63, 2**64 - 2)}
    assert len(keys) == 5


N = 200_000


def samples(purpose: Purpose = Purpose.CROP, view: int = 0, epoch: int = 0, draws: int = 2) -> np.ndarray:
    return uniform(stream_key(3, epoch, purpose, view), np.arange(N), draws).astype(np.float64)


def test_uniform() -> None:
    """Chi-square over 100 bins: 99 ± 14, so 170 is five standard deviations away. The first two moments likewise."""
    values = samples()[:, 0]
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    assert ((counts - N / 100) ** 2 / (N / 100)).sum() < 170
    assert abs(values.mean() - 1 / 2) < 5 * (1 / 12 / N) ** 0.5
    assert abs(values.var() - 1 / 12) < 5 * (1 / 180 / N) ** 0.5


@pytest.mark.parametrize(
    ("this", "that"),
    [
        (samples()[:, 0], samples()[:, 1]),
        (samples()[:-1, 0], samples()[1:, 0]),
        (samples(view=0)[:, 0], samples(view=1)[:, 0]),
        (samples(epoch=0)[:, 0], samples(epoch=1)[:, 0]),
        (samples(Purpose.CROP)[:, 0], samples(Purpose.FLIP)[:, 0]),
    ],
    ids=["draws", "neighbouring samples", "views", "epochs", "purposes"],
)
def test_uncorrelated(this: np.ndarray, that: np.ndarray) -> None:
    """Of the values and of their lowest bits: |r| √n is a standard normal deviate."""
    for a, b in ((this, that), (this * 2**24 % 2, that * 2**24 % 2)):
        assert abs(np.corrcoef(a, b)[0, 1]) * len(a) ** 0.5 < 5


@given(KEYS, st.integers(0, 300))
def test_permutation_is_one(key: int, n: int) -> None:
    order = permutation(key, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_are_spread_evenly() -> None:
    """All 24 orders of 4 things, over 4,800 keys: chi-square with 23 degrees of freedom, 5 standard deviations up is
    57.
    """
    orders = [tuple(permutation(stream_key(0, epoch, Purpose.ORDER), 4).tolist()) for epoch in range(4800)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 57
