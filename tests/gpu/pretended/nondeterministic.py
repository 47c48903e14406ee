"""Operations that have no deterministic kernel on CUDA, as torch lists them under `use_deterministic_algorithms`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

INTERPOLATION = ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
NAMES = {
    "AvgPool3d": ["avg_pool3d_backward"],
    "AdaptiveAvgPool2d": ["_adaptive_avg_pool2d_backward"],
    "AdaptiveAvgPool3d": ["_adaptive_avg_pool3d_backward"],
    "AdaptiveMaxPool2d": ["adaptive_max_pool2d_backward"],
    "FractionalMaxPool2d": ["fractional_max_pool2d_backward"],
    "FractionalMaxPool3d": ["fractional_max_pool3d_backward"],
    "MaxUnpool1d": ["max_unpool2d"],
    "MaxUnpool2d": ["max_unpool2d"],
    "MaxUnpool3d": ["max_unpool3d"],
    "interpolate": [
        *(f"upsample_{kind}_backward" for kind in INTERPOLATION),
        *(f"_upsample_{kind}_aa_backward" for kind in INTERPOLATION),
    ],
    "ReflectionPad1d": ["reflection_pad1d_backward"],
    "ReflectionPad2d": ["reflection_pad2d_backward"],
    "ReflectionPad3d": ["reflection_pad3d_backward"],
    "NLLLoss": ["nll_loss2d_forward"],  # of images; that of rows has no sum over threads
    "CTCLoss": ["_ctc_loss_backward", "_cudnn_ctc_loss"],
    "EmbeddingBag": ["_embedding_bag_dense_backward"],
    "put_": ["put_"],
    "histc": ["histc"],
    "bincount": ["bincount"],
    "median": ["median", "nanmedian", "kthvalue"],
    "grid_sample": ["grid_sampler_2d_backward", "grid_sampler_3d_backward"],
    "cumsum": ["cumsum", "cumsum_", "logcumsumexp"],
    "scatter_reduce": ["scatter_reduce", "scatter_reduce_"],
    "resize_": [],  # of quantized tensors alone
}
"""Name in torch's list -> operations that are dispatched for it."""

ONLY_WHERE: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "bincount": lambda args, how: (len(args) > 1 and args[1] is not None) or how.get("weights") is not None,
    "median": lambda args, how: len(args) > 1,
    "nanmedian": lambda args, how: len(args) > 1,
    "cumsum": lambda args, how: (how.get("dtype") or args[0].dtype).is_floating_point,
    "cumsum_": lambda args, how: args[0].dtype.is_floating_point,
    "scatter_reduce": lambda args, how: args[4] == "prod",
    "scatter_reduce_": lambda args, how: args[4] == "prod",
}
_ALL = {name for names in NAMES.values() for name in names}


def without_deterministic_kernel(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether torch may refuse an operation, of tensors on CUDA, under --deterministic."""
    name = name.partition(".")[0]
    return name in _ALL and (name not in ONLY_WHERE or ONLY_WHERE[name](args, kwargs))


def listed_by_torch() -> set[str]:
    """The last part of each name in the list of the installed torch."""
    text = torch.use_deterministic_algorithms.__doc__ or ""
    before, after = "will throw a\n    :class:`RuntimeError` when ``mode=True``", "In addition"
    refused = text.partition(before)[2].partition(after)[0]
    return {name.rpartition(".")[2] for name in re.findall(r"\* :(?:class|func):`([\w.]+)`", refused)}
