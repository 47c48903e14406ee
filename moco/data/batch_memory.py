"""Host memory of batches, used again."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor


class BatchMemory:
    """Host memory for batches. Fresh pages cost a raw image 30 of 300 µs, so a block is used again.

    A block comes back when the array that was handed out is collected. Every tensor that shares its memory holds that
    array, so no such tensor is left then.
    """

    def __init__(self, most: int, pinned: bool) -> None:
        self.pinned = pinned
        self.free: deque[np.ndarray] = deque(maxlen=most)  # appended to by whichever thread collects the array

    def take(self, shape: tuple[int, ...]) -> Tensor:
        if self.pinned:  # torch keeps pinned memory itself, and knows when a copy from it has ended
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        try:
            block = self.free.popleft()
        except IndexError:
            block = np.empty(size, dtype=np.uint8)
        if len(block) < size:
            block = np.empty(size, dtype=np.uint8)
        handed_out = block[:size]
        weakref.finalize(handed_out, self.free.append, block).atexit = False
        return torch.from_numpy(handed_out).view(shape)
