"""Copies numbers from the device to the host without a wait."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from moco.run.saver import host_like


class Late:
    """Starts to copy tensors to the host when it is made.

    On a GPU the copies follow the work that is already queued, and the host goes on. If the host reads them one step
    later, the GPU has that step's work meanwhile.
    """

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        self._copies = [_begun(tensor) for tensor in tensors]
        self._done: torch.cuda.Event | None = None
        if any(copy is not None and copy.is_pinned() for copy in self._copies):
            self._done = torch.cuda.Event()
            self._done.record()

    @property
    def arrived(self) -> bool:
        """Returns True if `read` would not wait."""
        return self._done is None or self._done.query()

    def read(self) -> list[Tensor | None]:
        """Returns the tensors on the CPU, None for None.

        It waits for the work queued before the copies, not for later work.
        """
        if self._done is not None:
            self._done.synchronize()
        return self._copies


def _begun(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_cuda:
        return None if tensor is None else tensor.clone()
    return host_like(tensor).copy_(tensor, non_blocking=True)
