"""What changes from epoch to epoch, as functions of the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence


def learning_rate(
    epoch: int, lr: float, epochs: int, schedule: Sequence[int] = (), cos: bool = False, warmup_epochs: int = 0
) -> float:
    """MoCo's learning rate of a 0-based epoch: ×0.1 at each milestone reached, or lr · ½(1 + cos(π · epoch/epochs)).

    `warmup_epochs` (an addition, 0 in MoCo) rises linearly to that curve: epoch e gets (e+1)/(warmup_epochs+1) of it.
    """
    if cos:
        rate = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    else:
        rate = lr * 0.1 ** sum(epoch >= milestone for milestone in schedule)
    if epoch < warmup_epochs:
        rate *= (epoch + 1) / (warmup_epochs + 1)
    return rate
