"""Keeps the state of a loss: parameters, buffers, anything with a state_dict.

Every rank has its own copy of the loss and sees its own samples. Gradients and floating-point buffers are averaged over
the ranks in every step, so that all copies stay equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moco.distributed import all_reduce_sum, world_size
from moco.errors import InputError


class LossState:
    """Holds the parameters and buffers of a loss.

    For a loss without any, every method does nothing.
    """

    def __init__(self, loss: Any) -> None:
        self._loss = loss
        module = loss if isinstance(loss, nn.Module) else nn.Module()
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]

    def average_gradients(self) -> None:
        """Averages the gradients of the loss's parameters over ranks.

        Call it after the backward pass.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # otherwise the other ranks would wait for this one
            _average(parameter.grad)

    def average_buffers(self) -> None:
        """Averages the floating-point buffers over ranks."""
        for buffer in self.buffers:
            _average(buffer)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that must be equal on all ranks, by name."""
        return {f"loss.{i}": value.detach() for i, value in enumerate([*self.parameters, *self.buffers])}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for the checkpoint; empty for a loss without state."""
        return dict(self._loss.state_dict()) if hasattr(self._loss, "state_dict") else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the result of `state_dict`. InputError if it is another loss's."""
        if not state and not self.state_dict():
            return
        try:
            self._loss.load_state_dict(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"the loss's state in the checkpoint does not fit this --loss: {error}") from error


def _average(value: Tensor) -> None:
    if world_size() > 1:
        with torch.no_grad():
            value.copy_(all_reduce_sum(value) / world_size())
