"""Builds the optimiser of a run, which leaves out bad steps.

A bad step has a gradient that is not finite. torch's fused kernels read parameter, gradient and state in the order of
memory. On a GPU they refuse tensors whose strides differ; on a CPU they pair wrong entries without an error. So a state
in another memory format is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from moco.distributed import all_reduce_sum
from moco.pretrain.lars import LARS

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda parameters, o: torch.optim.SGD(
        parameters, o.lr, momentum=o.momentum, weight_decay=o.weight_decay, fused=True
    ),
    "lars": lambda parameters, o: LARS(parameters, o.lr, momentum=o.momentum, weight_decay=o.weight_decay),
    "adamw": lambda parameters, o: torch.optim.AdamW(parameters, o.lr, weight_decay=o.weight_decay, fused=True),
}
"""--optimizer by name: (parameters, options) -> optimiser.

It must use `found_inf` as torch's fused ones do, which leave out a bad step.
"""


def make_optimizer(model: nn.Module, of_loss: list[nn.Parameter], options: Any) -> Optimizer:
    """Builds the optimiser that the options describe.

    The parameters of a loss are a group of their own. The key encoder's parameters are listed, as in MoCo's files; they
    never have a gradient.
    """
    optimizer = OPTIMIZERS[options.optimizer](model.parameters(), options)
    if of_loss:
        optimizer.add_param_group({"params": of_loss})
    return optimizer


class GuardedOptimizer:
    """Leaves out an optimiser's steps whose gradient is not finite.

    Nothing here waits for the device. trained: the parameters whose gradients count. amp: 'fp16' scales the loss.
    grad_clip: largest gradient norm. keep: buffers that the forward pass changes and that a bad step must not change,
    such as BatchNorm's statistics.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        trained: Iterable[nn.Parameter],
        device: torch.device,
        *,
        amp: str = "off",
        grad_clip: float | None = None,
        keep: Iterable[Tensor] = (),
    ) -> None:
        self.optimizer = optimizer
        self.trained = list(trained)
        self.grad_clip = grad_clip
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.bad_steps = torch.zeros((), dtype=torch.long, device=device)
        self.first_bad = torch.zeros((), dtype=torch.long, device=device)  # number of a step, from 1; 0: none
        self._kept = FlatCopy(keep)
        self._layouts_checked = False
        zero_momentum(optimizer)

    def begin(self) -> None:
        """Prepares a step; call it before the forward pass."""
        self._kept.take()
        for parameter in self.trained:  # the others never have a gradient
            parameter.grad = None

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss`."""
        self.scaler.scale(loss).backward()

    def step(self, loss: Tensor, number: int) -> None:
        """Applies the step, or counts it as not applied.

        loss: its value. number: of the step, from 1.
        """
        if not self._layouts_checked:  # once: a loaded state does not change its layout later
            check_layouts(self.optimizer)
            self._layouts_checked = True
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        if self.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.grad_clip, norm)
        if self.scaler.is_enabled():
            bad = ~all_reduce_sum(loss).isfinite()  # a gradient alone may overflow: that only lowers the scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            bad = ~norm.isfinite()
            # if it is 1, a fused step changes nothing
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.first_bad = torch.where((self.first_bad == 0) & bad, number, self.first_bad)
        self.bad_steps += bad
        self._kept.put_back(bad)

    def report(self) -> Tensor:
        """Returns `not_applied` as a tensor [2] on the device, without a wait."""
        report = torch.stack([self.bad_steps, self.first_bad])
        self.first_bad.zero_()
        return report

    def not_applied(self) -> tuple[int, int]:
        """Returns (steps not applied, first one since last call or 0).

        The count begins with the run. It waits for the device. All ranks get the same values.
        """
        bad, first = self.report().tolist()
        return bad, first

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def state(self) -> dict[str, Any]:
        """Returns the state that is not in the optimiser's own `state_dict`."""
        return {"scaler": self.scaler.state_dict(), "bad_steps": self.bad_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        if state["scaler"]:  # empty without fp16
            self.scaler.load_state_dict(state["scaler"])
        self.bad_steps.copy_(state["bad_steps"])


class FlatCopy:
    """Copies many small tensors into one buffer for each type.

    It takes a few kernels for any number of tensors.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        of_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            of_type.setdefault(tensor.dtype, []).append(tensor)
        self._groups = [(group, torch.empty_like(_flat(group))) for group in of_type.values()]

    def take(self) -> None:
        for group, before in self._groups:
            torch.cat([tensor.reshape(-1) for tensor in group], out=before)

    def put_back(self, wanted: Tensor) -> None:
        """Restores the tensors of `take` if `wanted` is true.

        wanted: a bool on the device.
        """
        for group, before in self._groups:
            chosen = torch.where(wanted, before, _flat(group)).split([tensor.numel() for tensor in group])
            torch._foreach_copy_(group, [part.view_as(tensor) for part, tensor in zip(chosen, group, strict=True)])


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def zero_momentum(optimizer: Optimizer) -> None:
    """Gives SGD a momentum of zero.

    Otherwise fused SGD takes uninitialised memory if its first step is not applied.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad and group.get("momentum"):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Loads a checkpoint's optimiser state; hyper-parameters stay those of the command line.

    Tensors of a parameter's shape take its memory format. ValueError if the state is of other parameters.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, asked in zip(optimizer.param_groups, settings, strict=True):
        group.update(asked)
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if _fits(value, parameter) and value.stride() != parameter.stride():
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_layouts(optimizer: Optimizer) -> None:
    """Raises RuntimeError if a state's memory format differs from its parameter's.

    It does not wait for the device.
    """
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if _fits(value, parameter) and value.stride() != parameter.stride():
                raise RuntimeError(
                    f"{name} of a parameter of shape {tuple(parameter.shape)} has strides {value.stride()}, the"
                    f" parameter has {parameter.stride()}: load it with moco.pretrain.optimiser.load_state"
                )


def _fits(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
