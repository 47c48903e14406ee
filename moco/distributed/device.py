"""Which device this process trains on."""

from __future__ import annotations

import torch

from moco.distributed.session import local_rank, local_world_size
from moco.errors import InputError


def copy_without_waiting(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x`, of host memory, on `device`; the host goes on at once. CUDA copies so from pinned memory alone."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def pick_device(wish: str) -> torch.device:
    """`wish`: 'cuda', 'cpu' or 'auto'. With CUDA, the device of this rank on its node."""
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; install a CUDA build of torch or pass --device cpu")
    if local_rank() >= torch.cuda.device_count():
        raise InputError(
            f"{local_world_size()} processes on this node but {torch.cuda.device_count()} GPUs;"
            " pass a smaller --nproc_per_node"
        )
    return torch.device("cuda", local_rank())
