"""Numbers on their way from the device to the host, read when they have arrived."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from moco.run.saver import host_like


class Late:
    """Copies of tensors, begun where this is made.

    On a GPU the copies stand behind what was asked of it so far, and the host goes on. Reading them a step later leaves
    the GPU the work of that step meanwhile.
    """

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        self._copies = [_begun(tensor) for tensor in tensors]
        self._done: torch.cuda.Event | None = None
        if any(copy is not None and copy.is_pinned() for copy in self._copies):
            self._done = torch.cuda.Event()
            self._done.record()

    @property
    def arrived(self) -> bool:
        """Whether `read` would not wait."""
        return self._done is None or self._done.query()

    def read(self) -> list[Tensor | None]:
        """The tensors on the CPU, None for None. Waits for what came before them, and for nothing after."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies


def _begun(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_cuda:
        return None if tensor is None else tensor.clone()
    return host_like(tensor).copy_(tensor, non_blocking=True)
