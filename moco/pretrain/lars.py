"""Implements LARS: SGD with momentum, scaled to each weight's own norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LARS(Optimizer):
    """Implements You et al. 2017, as moco-v3 and BYOL use it.

    https://arxiv.org/abs/1708.03888. For a weight w of two or more dimensions: d = g + weight_decay·w, scaled by
    trust·‖w‖/‖d‖ (by 1 if a norm is 0). Biases and norms, of one dimension, keep d = g. Then mu ← momentum·mu + d and w
    ← w - lr·mu. The state is called `mu`, as in moco-v3's files. Each kernel covers all weights; nothing waits for the
    device. found_inf: a tensor set by the caller, as for torch's fused optimisers; if it is 1 the step changes nothing.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None  # set by GradScaler, to None: gradients are unscaled before the step
    _step_supports_amp_scaling = True  # GradScaler then passes found_inf on and does not read it

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(weights, group)

    def _step_group(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        bad = torch.zeros((), device=weights[0].device) if self.found_inf is None else self.found_inf
        good = 1 - bad
        gradients = [torch.where(bad > 0, 0, weight.grad) for weight in weights]  # type: ignore[arg-type]
        adapted = [i for i, weight in enumerate(weights) if weight.dim() > 1]
        if adapted:
            wide = [weights[i] for i in adapted]
            updates = [gradients[i] for i in adapted]
            torch._foreach_add_(updates, wide, alpha=group["weight_decay"])
            norms = [torch.stack(torch._foreach_norm(tensors)) for tensors in (wide, updates)]
            scales = torch.where((norms[0] > 0) & (norms[1] > 0), group["trust"] * norms[0] / norms[1], 1)
            torch._foreach_mul_(updates, scales.unbind())
        momenta = [self.state[weight].setdefault("mu", torch.zeros_like(weight)) for weight in weights]
        torch._foreach_mul_(momenta, torch.where(bad > 0, 1, group["momentum"]))
        torch._foreach_add_(momenta, torch._foreach_mul(gradients, good))
        torch._foreach_sub_(weights, torch._foreach_mul(momenta, group["lr"] * good))
