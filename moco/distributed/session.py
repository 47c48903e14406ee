"""Everything that crosses ranks, and the only file that imports torch.distributed. At world size 1 each function is the
identity.

Per-rank batch sizes are passed as Python lists (`sizes[r]` rows on rank r), so that uneven batches need no exchange of
sizes and no host-device synchronisation.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moco.distributed.lost_rank import RollCall, name_of_start
from moco.errors import InputError, RankError
from moco.stages import stage

T = TypeVar("T")

# for flags and small Python objects: never touches the accelerator's stream
_cpu_group: dist.ProcessGroup | None = None
_ended: dist.ProcessGroup | None = None  # the group of the last session


def is_launched() -> bool:
    """Whether torchrun (or srun with the same variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    return int(os.environ.get("RANK", 0)) if is_launched() else 0


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0)) if is_launched() else 0


def local_world_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if is_launched() else 1


@contextlib.contextmanager
def session(device: torch.device, timeout: float = 1800.0) -> Iterator[None]:
    """Joins the process group for the length of a `with` block: NCCL for CUDA, gloo for the CPU. `timeout` in
    seconds."""
    global _cpu_group, _ended
    if world_size() == 1:
        yield
        return
    limit = timedelta(seconds=timeout)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # NCCL's own alarm ends the process without naming a rank: it comes second, after that of the vote of each step
        start = _join("cpu:gloo,cuda:nccl", 2 * limit)
        _cpu_group = dist.new_group(backend="gloo", timeout=limit)
    else:
        start = _join("gloo", limit)
        _cpu_group = dist.group.WORLD
    roll = RollCall(dist.PrefixStore(f"moco/{start}/roll call", _connect(limit)), rank(), world_size())
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)):
            roll.say(f"ended: {error}")
            raise
        raise RankError(roll.who_is_missing(limit, str(error))) from error
    except BaseException as error:
        roll.say(f"ended: {error}")
        raise
    finally:
        # A DistributedDataParallel that is still alive must not be the group's last owner: it would run the destructor
        # without letting go of Python's lock, and wait for a thread of gloo's that waits for that lock.
        _cpu_group, _ended = None, dist.group.WORLD
        dist.destroy_process_group()


def _connect(limit: timedelta, keep: bool = False) -> dist.Store:
    """To the store of all ranks, which torchrun's agent keeps, or else rank 0 (`keep`)."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(*address, world_size=world_size(), is_master=keep, timeout=limit)


def _join(backend: str, limit: timedelta) -> str:
    """Forms the process group; returns the name of this start, as `rollcall.name_of_start`."""
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = _connect(limit, keep=rank() == 0 and not by_agent)
    start = name_of_start(store, rank(), world_size(), limit)
    place = dist.PrefixStore(f"moco/{start}/group", store)
    dist.init_process_group(backend, store=place, rank=rank(), world_size=world_size(), timeout=limit)
    return start


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """DistributedDataParallel, without its per-step broadcast of buffers: the queue is the same everywhere by
    construction and is as large as the encoder. Rank 0's BatchNorm statistics are the ones that are saved
    (`broadcast_buffers`)."""
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


def shares(n: int, world: int) -> list[int]:
    """How n samples are dealt to `world` ranks: sizes differ by at most one, the larger first."""
    return [n // world + (r < n % world) for r in range(world)]


def share(n: int) -> slice:
    """This rank's contiguous part of range(n)."""
    sizes = shares(n, world_size())
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def barrier() -> None:
    if world_size() > 1:
        dist.barrier(group=_cpu_group)


def broadcast_object(value: T) -> T:
    """Rank 0's value (any picklable object), on every rank."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, group=_cpu_group)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value, group=_cpu_group)
    return box


def any_rank(*flags: bool) -> list[bool]:
    """For each flag: True on every rank if it is true on one. Travels on the CPU group: no host-device
    synchronisation."""
    if world_size() == 1:
        return list(flags)
    votes = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_cpu_group)
    return votes.bool().tolist()


def on_rank_0(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, where alone it is called, on every rank; an InputError there is raised on every
    rank.

    For what must be decided once: several ranks that look at a shared folder may not see the same files.
    """
    if world_size() == 1:
        return work()
    answer: T | None = None
    refusal: str | None = None
    if rank() == 0:
        try:
            answer = work()
        except InputError as error:
            refusal = str(error)
    answer, refusal = broadcast_object((answer, refusal))
    if refusal is not None:
        raise InputError(refusal)
    return answer  # type: ignore[return-value]


@stage("communication")
def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, without gradient. A new tensor at world size > 1."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


@stage("communication")
def all_reduce_max(x: Tensor) -> Tensor:
    """Largest over ranks, without gradient. A new tensor at world size > 1."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def broadcast_buffers(module: nn.Module) -> None:
    """Rank 0's buffers (BatchNorm statistics) on every rank: before an evaluation, so that all ranks measure one
    model."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


@stage("communication")
def gather_rows(x: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Rows of all ranks in rank order, without gradient: [sizes[r], ...] on rank r -> [sum(sizes), ...] on every rank.

    `sizes` None means as many rows on every rank as here. Uneven parts are padded for the exchange (collectives take
    equal ones).
    """
    if world_size() == 1:
        return x.detach()
    sizes = sizes or [len(x)] * world_size()
    most = max(sizes)
    padded = x.detach().new_zeros((most, *x.shape[1:]))
    padded[: len(x)] = x.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


@stage("communication")
def exchange_rows(x: Tensor, send: list[int], receive: list[int]) -> Tensor:
    """All-to-all without gradient: the first send[0] rows of x go to rank 0, the next send[1] to rank 1, ...; returns
    what came, receive[r] rows of rank r. With a single entry in `send` nothing travels."""
    if len(send) == 1:
        return x
    x = x.contiguous()
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x, receive, send)
    return out
