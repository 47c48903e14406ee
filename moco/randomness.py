"""Random numbers as a function, without state to save.

(seed, epoch, purpose, view, sample index) -> numbers. The generators of PyTorch and NumPy have a state, so their
numbers depend on all earlier calls. Here every number is a hash of its coordinates. It is the same in any loader, on
any device, for any number of workers and ranks, and after a resume.
The hash is the finaliser of splitmix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014). Its arithmetic modulo 2**64 is the same in Python, NumPy and torch.
"""

from __future__ import annotations

from enum import IntEnum
from typing import overload

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: consecutive counters land far apart
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


class Purpose(IntEnum):
    """Lists the uses of random numbers, so that no two share numbers.

    The values are part of the stream: append, never renumber.
    """

    ORDER = 0
    CROP = 1
    FLIP = 2
    JITTER = 3
    GRAYSCALE = 4
    BLUR = 5
    SOLARIZE = 6
    ROTATION = 7
    SHUFFLE = 8
    FEW_LABEL = 9
    LABEL_SHARE = 10
    HELD_OUT = 11
    FOLD = 12


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MIX1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX2) & _MASK
    return x ^ (x >> 31)


def stream_key(seed: int, epoch: int, purpose: Purpose, view: int = 0) -> int:
    """Returns the 64-bit key of one stream of numbers.

    The four arguments are hashed one after the other; their order matters.
    """
    key = 0
    for part in (seed, epoch, int(purpose), view):
        key = _mix((key + _GOLDEN * ((part & _MASK) + 1)) & _MASK)
    return key


def _hash_numpy(key: int, counter: np.ndarray) -> np.ndarray:
    x = np.uint64(key) + np.uint64(_GOLDEN) * (counter.astype(np.uint64) + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX2)
    return x ^ (x >> np.uint64(31))


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & (
        (1 << (64 - bits)) - 1
    )  # torch shifts int64 arithmetically; the hash needs zeros from the left


def _hash_torch(key: int | Tensor, counter: Tensor) -> Tensor:
    x = (counter + 1) * _signed(_GOLDEN) + (key if isinstance(key, Tensor) else _signed(key))
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX2)
    return x ^ _shift_right(x, 31)


def key_tensor(keys: list[int]) -> Tensor:
    """Returns keys as an int64 tensor, for `uniform` in a compiled graph.

    A Python int would bind the graph to one epoch.
    """
    return torch.tensor([_signed(key) for key in keys])


def column_steps(draws: int) -> Tensor:
    """Returns the numbers that `uniform` adds to its columns: int64 [draws]."""
    return torch.arange(draws) * _signed(_GOLDEN)


@overload
def uniform(key: int, index: np.ndarray, draws: int) -> np.ndarray: ...
@overload
def uniform(key: int | Tensor, index: Tensor, draws: int, steps: Tensor | None = None) -> Tensor: ...
def uniform(
    key: int | Tensor, index: np.ndarray | Tensor, draws: int, steps: Tensor | None = None
) -> np.ndarray | Tensor:
    """Returns `draws` numbers in [0, 1) for each sample index.

    index: int64 [n]; the result is float32 [n, draws].
    An array gives an array, a tensor gives a tensor on its device, with equal bits.
    steps: `column_steps` on that device, at least `draws` of them.
    Row i depends only on `key` and `index[i]`; its first columns do not change with `draws`.
    Each number has 24 random bits, which float32 holds exactly.
    """
    scale = 2.0**-24
    if isinstance(index, Tensor):
        per_sample = _hash_torch(key, index)
        columns = torch.arange(draws, device=index.device) * _signed(_GOLDEN) if steps is None else steps[:draws]
        hashed = _hash_torch(0, per_sample[:, None] + columns)
        return _shift_right(hashed, 40).to(torch.float32) * scale
    assert not isinstance(key, Tensor)
    own = _hash_numpy(key, index)
    bits = _hash_numpy(0, own[:, None] + np.arange(draws, dtype=np.uint64) * np.uint64(_GOLDEN))
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(scale)


def permutation(key: int, n: int) -> np.ndarray:
    """Returns a permutation of range(n): int64 [n], the order of n hashes.

    Ties, with probability n²/2⁶⁵, go to the lower index.
    """
    return np.argsort(_hash_numpy(key, np.arange(n)), kind="stable")
