"""Sets the options of torch that decide which kernels run."""

from __future__ import annotations

import os

import torch
from torch import nn

from moco.errors import InputError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")  # those that torch accepts


def set_arithmetic(deterministic: bool, device: torch.device) -> str:
    """Sets determinism, TF32 and cudnn.benchmark; returns a line for the log.

    Call it before the first matrix product on CUDA. InputError if the environment makes deterministic products
    impossible.
    """
    if deterministic and device.type == "cuda":
        _set_workspace()
    torch.use_deterministic_algorithms(deterministic)
    # Filling each new tensor takes 40 ms for a batch of 256 on the host, and all of it is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined, unused-ignore]
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = True  # as in MoCo: torch's default for convolutions
    torch.backends.cuda.matmul.allow_tf32 = False  # logits and losses need fp32 products
    return (
        f"arithmetic: deterministic {_on(deterministic)}, cudnn.benchmark {_on(not deterministic)},"
        " TF32 on for convolutions and off for matrix products"
    )


def check_deterministic(encoder: nn.Module, arch: str, deterministic: bool, device: torch.device) -> None:
    """Raises InputError for a layer without a deterministic backward pass on CUDA."""
    if not deterministic or device.type != "cuda":
        return
    for name, layer in encoder.named_modules():
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size not in (1, (1, 1)):
            raise InputError(
                f"--deterministic is not possible on a GPU with {arch}: its layer {name} (AdaptiveAvgPool2d)"
                " has no deterministic backward pass; leave out --deterministic or take a ResNet"
            )


def _set_workspace() -> None:
    """Sets cuBLAS's workspace, which it reads at the first product."""
    if os.environ.setdefault(_WORKSPACE, _WORKSPACES[0]) not in _WORKSPACES:
        raise InputError(
            f"--deterministic cannot work while {_WORKSPACE} is {os.environ[_WORKSPACE]!r};"
            f" type: export {_WORKSPACE}={_WORKSPACES[0]}"
        )


def _on(setting: bool) -> str:
    return "on" if setting else "off"
