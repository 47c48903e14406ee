"""Computes the order of samples from (seed, epoch, step).

There is no state to save or to replay.
"""

from __future__ import annotations

import numpy as np

from moco.distributed import shares
from moco.errors import InputError
from moco.randomness import Purpose, permutation, stream_key


class Sampler:
    """Orders n samples in batches.

    The global batch does not depend on the number of ranks. Step s of an epoch takes perm[s·B : (s+1)·B] of a
    permutation drawn from (seed, epoch). Each rank gets a contiguous part, and the parts differ by at most one sample.
    With `drop_last` a short last batch is left out (MoCo). Otherwise it is kept, and a rank's part may be empty.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if n < 1:
            raise InputError("the data set is empty: check the path of the data")
        if batch_size < 1:
            raise InputError(f"a batch of {batch_size} holds no image: pass --batch-size 1 or more")
        if batch_size < world_size:
            raise InputError(
                f"a batch of {batch_size} leaves some of the {world_size} processes without an image: "
                f"pass --batch-size {world_size} or more, or start fewer processes"
            )
        if drop_last and n < batch_size:
            raise InputError(
                f"the data set has {n} images, fewer than one batch of {batch_size}: pass --batch-size {n} or less"
            )
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.steps = n // batch_size if drop_last else -(-n // batch_size)
        self._order: tuple[int, np.ndarray] = (-1, np.arange(n)) if shuffle else (0, np.arange(n))

    def order(self, epoch: int) -> np.ndarray:
        """Returns all sample indices in this epoch's order: int64 [n]."""
        if self.shuffle and self._order[0] != epoch:
            self._order = (epoch, permutation(stream_key(self.seed, epoch, Purpose.ORDER), self.n))
        return self._order[1]

    def global_batch(self, epoch: int, step: int) -> np.ndarray:
        """Returns the sample indices of `step` over all ranks: int64 [<= batch_size]."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of an epoch of {self.steps}")
        order = self.order(epoch)
        start = step * self.batch_size
        return order[start : start + self.batch_size]

    def sizes(self, step: int) -> list[int]:
        """Returns the number of samples of the global batch for each rank."""
        size = min(self.batch_size, self.n - step * self.batch_size)
        return shares(size, self.world_size)

    def batch(self, epoch: int, step: int) -> np.ndarray:
        """Returns this rank's sample indices: int64 [sizes(step)[rank]]."""
        sizes = self.sizes(step)
        start = sum(sizes[: self.rank])
        return self.global_batch(epoch, step)[start : start + sizes[self.rank]]
