"""Operations for which torch has no fake form, or one that does not do as CUDA does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def fused(gpu: Any, parameters: list[Tensor], *lists: Any, **more: Any) -> None:
    """torch's fused optimisers on CUDA refuse tensors that differ in device, dtype, shape or strides."""
    for others in (other for other in lists if isinstance(other, (list, tuple)) and other):
        for parameter, other in zip(parameters, others, strict=True):
            if other.dim() == 0 and parameter.dim():  # a step count
                continue
            strides = zip(parameter.shape, parameter.stride(), other.stride(), strict=True)
            same = (other.device, other.dtype, other.shape) == (parameter.device, parameter.dtype, parameter.shape)
            if not same or any(a != b for n, a, b in strides if n > 1):
                raise RuntimeError(
                    f"fused optimiser: a parameter {tuple(parameter.shape)} with strides {parameter.stride()} and a"
                    f" tensor {tuple(other.shape)} of {other.device} with strides {other.stride()}"
                )
    for scalar in (more.get("found_inf"), more.get("grad_scale")):
        if scalar is not None and scalar.device != parameters[0].device:
            raise RuntimeError(f"fused optimiser: found_inf or grad_scale on {scalar.device}")


def _per_channel(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


torch.library.define("pretended::compiled", "(Tensor(a!) into, Tensor?[] others, int kernels) -> ()")


def compiled_values(into: Tensor, *others: Any) -> None:
    """Stands in for a compiled function, which reads its arguments once and writes `into` once.

    The second kernel is for what is one number a channel.
    """
    torch.ops.pretended.compiled(into, [other for other in others if isinstance(other, Tensor)], 2)


def compiled_gradients(into: Tensor, grad: Tensor, x: Tensor, statistics: Tensor, *others: Any) -> Tensor:
    compiled_values(into, grad, x, statistics, *others)
    return torch.empty_like(statistics[:, 0])


# kernels of moco.losses.logsumexp.softmax_of_rows as Inductor cuts it, see check_lowering.py: rows that are too few and
# too long for one block each are reduced in two kernels
LONGEST_ROW_OF_A_BLOCK = 8192
KERNELS_OF_LONG_ROWS = 5


def compiled_softmax(x: Tensor, value: Tensor) -> None:
    """Stands in for the compiled softmax, which reads and writes its rows."""
    kernels = 1 if x.shape[1] <= LONGEST_ROW_OF_A_BLOCK else KERNELS_OF_LONG_ROWS
    torch.ops.pretended.compiled(x, [x.view_as(x), value], kernels)


def gru_cell(gpu: Any, of_input: Tensor, of_hidden: Tensor, hidden: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), hidden.new_empty(len(hidden), 5 * hidden.shape[1])


def gru_cell_backward(gpu: Any, grad: Tensor, workspace: Tensor, has_bias: bool) -> tuple[Tensor | None, ...]:
    gates = (3 * grad.shape[1],)
    biases = (grad.new_empty(gates), grad.new_empty(gates)) if has_bias else (None, None)
    return grad.new_empty(len(grad), *gates), grad.new_empty(len(grad), *gates), torch.empty_like(grad), *biases


KERNELS: dict[str, Callable[..., Any]] = {
    "_fused_sgd_": fused,
    "_fused_adam_": fused,
    "_fused_adamw_": fused,
    # torch.nn.SyncBatchNorm
    "batch_norm_stats": lambda gpu, x, *_: (_per_channel(x), _per_channel(x)),
    "batch_norm_gather_stats_with_counts": lambda gpu, x, *_: (_per_channel(x), _per_channel(x)),
    "batch_norm_elemt": lambda gpu, x, *_: torch.empty_like(x),
    "batch_norm_backward_reduce": lambda gpu, grad, x, *_: tuple(_per_channel(x) for _ in range(4)),
    "batch_norm_backward_elemt": lambda gpu, grad, x, *_: torch.empty_like(x),
    "_thnn_fused_gru_cell": gru_cell,
    "_thnn_fused_gru_cell_backward": gru_cell_backward,
    "pretended::compiled": lambda gpu, into, *_: None,
}
_CUDNN = ("convolution", "convolution_backward", "native_batch_norm", "native_batch_norm_backward")


def keeps_channels_last(name: str, args: Any, out: Any) -> Any:
    """A CPU build does not know that cuDNN answers NHWC with NHWC."""
    if name not in _CUDNN or not any(_is_nhwc(x) for x in args[:3]):
        return out
    return tree_map(
        lambda x: x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x, out
    )


def _is_nhwc(x: Any) -> bool:
    if not isinstance(x, Tensor) or x.dim() != 4:
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
