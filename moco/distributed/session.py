"""The process group of a run, and the device of a rank."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from moco.distributed.lost_rank import RollCall, name_of_start
from moco.errors import InputError, RankError
from moco.world import World, current, inside

T = TypeVar("T")

# for flags and small Python objects; it never uses the accelerator's stream
_cpu_group: dist.ProcessGroup | None = None
_ended: dist.ProcessGroup | None = None  # the group of the last session


def rank() -> int:
    return current().rank


def world_size() -> int:
    return current().size


@contextlib.contextmanager
def session(world: World, device: torch.device, timeout: float = 1800.0) -> Iterator[None]:
    """Joins the process group of `world` for a `with` block.

    NCCL for CUDA, gloo for the CPU. timeout: in seconds. After an error the group is not destroyed: the process must
    end, and can print the reason first. RankError if a rank is lost.
    """
    with inside(world):
        if world.size == 1:
            yield
        else:
            with _process_group(device, timeout):
                yield


@contextlib.contextmanager
def _process_group(device: torch.device, timeout: float) -> Iterator[None]:
    global _cpu_group, _ended
    limit = timedelta(seconds=timeout)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # NCCL's own timeout ends the process without naming a rank: it is longer than that of the vote in each step
        start = _join("cpu:gloo,cuda:nccl", 2 * limit)
        _cpu_group = dist.new_group(backend="gloo", timeout=limit)
    else:
        start = _join("gloo", limit)
        _cpu_group = dist.group.WORLD
    roll = RollCall(dist.PrefixStore(f"moco/{start}/roll call", _connect(limit)), rank(), world_size())
    ended_well = False
    try:
        yield
    except RuntimeError as error:
        # a vote under way that times out closes the connection of the others: "timeout caused pair closure"
        of_network = any(word in str(error) for word in ("gloo", "NCCL", "pair closure"))
        if not (isinstance(error, dist.DistError) or of_network):
            roll.say(f"ended: {error}")
            raise
        raise RankError(roll.who_is_missing(limit, str(error))) from error
    except BaseException as error:
        roll.say(f"ended: {error}")
        raise
    else:
        ended_well = True
    finally:
        # A DistributedDataParallel must not be the group's last owner. It would run the destructor without releasing
        # Python's lock, and wait for a gloo thread that waits for this lock.
        _cpu_group = None
        _ended = dist.group.WORLD
        # With NCCL this waits for collectives that the other ranks may never join. So after an error the group lives
        # until the process ends, and the message is printed before.
        if ended_well:
            dist.destroy_process_group()


def _connect(limit: timedelta, keep: bool = False) -> dist.Store:
    """Connects to the store of all ranks.

    torchrun's agent keeps it, or else rank 0 (`keep`).
    """
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(*address, world_size=world_size(), is_master=keep, timeout=limit)


def _join(backend: str, limit: timedelta) -> str:
    """Forms the process group; returns the name from `name_of_start`."""
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = _connect(limit, keep=rank() == 0 and not by_agent)
    start = name_of_start(store, rank(), world_size(), limit)
    place = dist.PrefixStore(f"moco/{start}/group", store)
    dist.init_process_group(backend, store=place, rank=rank(), world_size=world_size(), timeout=limit)
    return start


def cpu_group() -> dist.ProcessGroup | None:
    """Returns the group for flags and small Python objects.

    None outside a session.
    """
    return _cpu_group


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """Wraps a module in DistributedDataParallel, without its broadcast of buffers.

    At world size 1 it returns the module. The broadcast would be in every step, and it is not needed. The queue, which
    is as large as the encoder, is the same on all ranks by construction. Rank 0's BatchNorm statistics are the ones
    that are saved (`broadcast_buffers`).
    """
    if world_size() == 1:
        return module
    # the argument was renamed in torch 2.13
    renamed = "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters
    no_broadcast: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **no_broadcast,
    )


def copy_without_waiting(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies x from host memory to `device`; the host does not wait.

    CUDA copies without waiting only from pinned memory.
    """
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def pick_device(wish: str, world: World) -> torch.device:
    """Returns the device for 'cuda', 'cpu' or 'auto'.

    With CUDA it is this rank's GPU. InputError if there is no GPU for this rank.
    """
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; install a CUDA build of torch or pass --device cpu")
    if world.local_rank >= torch.cuda.device_count():
        raise InputError(
            f"{world.local_size} processes on this node but {torch.cuda.device_count()} GPUs;"
            " pass a smaller --nproc_per_node"
        )
    return torch.device("cuda", world.local_rank)
