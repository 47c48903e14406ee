"""Divides an epoch into batches: windows of consecutive sentences.

Their order is a function of seed and epoch.
"""

from __future__ import annotations

import numpy as np

from moco.distributed import rank, shares, world_size
from moco.errors import InputError
from moco.randomness import Purpose, permutation, stream_key


def held_out_count(n: int, wish: int | None) -> int:
    """Returns the number of sentences that are held out.

    They are at the end of a text of n sentences. wish None: a tenth, at most 5000.
    """
    return min(n, min(5000, n // 10) if wish is None else wish)


class WindowSampler:
    """Divides the sentences 0 … n - 1 into windows of `batch_size`.

    The last, smaller part of the text is left out. Each rank gets a contiguous part of a window, so all ranks together
    train on the same window as one process. InputError if n < batch_size.
    """

    def __init__(self, n: int, batch_size: int, seed: int):
        self.batch_size = batch_size
        self.seed = seed
        self.steps = n // batch_size
        if not self.steps:
            raise InputError(
                f"the text has {n} sentence{'s' * (n != 1)} to train on, fewer than --batch-size {batch_size};"
                " give more text, or lower --batch-size or --held-out"
            )
        self.sizes = shares(batch_size, world_size())
        self._before = sum(self.sizes[: rank()])

    def __len__(self) -> int:
        return self.steps

    def starts(self, epoch: int) -> np.ndarray:
        """Returns the first sentence of each step's window: int64 [steps]."""
        return permutation(stream_key(self.seed, epoch, Purpose.ORDER), self.steps) * self.batch_size

    def own(self, start: int) -> np.ndarray:
        """Returns this rank's sentences of the window at `start`."""
        first = start + self._before
        return np.arange(first, first + self.sizes[rank()])
