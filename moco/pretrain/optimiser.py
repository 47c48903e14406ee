"""The state of an optimiser: momentum from the start, and layouts that fit the parameters.

torch's fused kernels read parameter, gradient and state in the order of memory. On a GPU they refuse tensors whose
strides differ; on a CPU they pair wrong entries without an error. So a state in another memory format is converted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def zero_momentum(optimizer: Optimizer) -> None:
    """Gives SGD a momentum of zero.

    Fused SGD takes uninitialised memory for it if its very first step is one that is not applied.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and group.get("momentum"):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads a checkpoint's optimiser state; hyper-parameters stay those of the command line.

    Tensors of a parameter's shape take its memory format. ValueError if the state is of other parameters.
    """
    settings = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, asked in zip(optimizer.param_groups, settings, strict=True):
        group.update(asked)
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if _fits(value, parameter) and value.stride() != parameter.stride():
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_layouts(optimizer: Optimizer) -> None:
    """RuntimeError if a state tensor has another memory format than its parameter. Does not wait for the device."""
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if _fits(value, parameter) and value.stride() != parameter.stride():
                raise RuntimeError(
                    f"{name} of a parameter of shape {tuple(parameter.shape)} has strides {value.stride()}, the"
                    f" parameter has {parameter.stride()}: load it with moco.pretrain.optimiser.load_state"
                )


def _fits(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
