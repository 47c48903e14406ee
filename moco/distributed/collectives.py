"""Collectives over rows, numbers and Python objects.

At world size 1 each function is the identity. Batch sizes per rank are Python lists (`sizes[r]` rows on rank r), so
uneven batches need no exchange of sizes and no host-device synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moco.distributed.session import cpu_group, rank, world_size
from moco.errors import InputError
from moco.timing import stage

T = TypeVar("T")


def shares(n: int, world: int) -> list[int]:
    """Returns the number of samples of each rank.

    n samples are divided over `world` ranks. The numbers differ by at most one; the larger ones come first.
    """
    return [n // world + (r < n % world) for r in range(world)]


def share(n: int) -> slice:
    """Returns this rank's contiguous part of range(n)."""
    sizes = shares(n, world_size())
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def barrier() -> None:
    if world_size() > 1:
        dist.barrier(group=cpu_group())


def broadcast_object(value: T) -> T:
    """Returns rank 0's value, any picklable object, on every rank."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, group=cpu_group())
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Returns every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value, group=cpu_group())
    return box


class LateVote:
    """Votes on flags without a wait; the answer is one call late.

    A call returns True for each flag that was true on any rank one call ago. So no rank waits for another. It is for
    flags that stay true until they are obeyed. The vote uses the CPU group, so the host does not wait for the device
    either. With `now` the answer is that of this call, and the host waits for it. No vote is under way after a call
    with `now`, or after one that returned a true flag.
    """

    def __init__(self) -> None:
        self._under_way: tuple[Tensor, dist.Work] | None = None

    def __call__(self, *flags: bool, now: bool = False) -> list[bool]:
        """Returns True for each flag that was true on any rank.

        All ranks must call it together, with the same `now`.
        """
        if world_size() == 1:
            return list(flags)
        before = self._answer(len(flags))
        if any(before) and not now:
            return before
        votes = torch.tensor([int(flag) for flag in flags])
        work = dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=cpu_group(), async_op=True)
        self._under_way = votes, work
        if not now:
            return before
        return [a or b for a, b in zip(before, self._answer(len(flags)), strict=True)]

    def _answer(self, flags: int) -> list[bool]:
        if self._under_way is None:
            return [False] * flags
        votes, work = self._under_way
        self._under_way = None
        work.wait()
        return votes.bool().tolist()


def on_rank_0(work: Callable[[], T]) -> T:
    """Calls `work` on rank 0 alone; returns its result on every rank.

    An InputError is raised on every rank. It is for decisions about a shared folder, where ranks may see
    different files.
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
    """Returns the sum over ranks, without gradient.

    It is a new tensor if the world size is above 1.
    """
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


@stage("communication")
def all_reduce_max(x: Tensor) -> Tensor:
    """Returns the largest value over ranks, without gradient.

    It is a new tensor if the world size is above 1.
    """
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def broadcast_buffers(module: nn.Module) -> None:
    """Copies rank 0's buffers (BatchNorm statistics) to every rank.

    Call it before an evaluation, so that all ranks measure the same model.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


@stage("communication")
def gather_rows(x: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Gathers the rows of all ranks in rank order, without gradient.

    [sizes[r], ...] on rank r -> [sum(sizes), ...] on every rank. sizes None: every rank has as many rows as this one.
    Uneven parts are padded for the exchange, because collectives need equal parts.
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
    """Exchanges rows between all ranks (all-to-all), without gradient.

    The first send[0] rows of x go to rank 0, the next send[1] to rank 1, ... Returns receive[r] rows of each rank r, in
    rank order. With a single entry in `send` it returns x.
    """
    if len(send) == 1:
        return x
    x = x.contiguous()
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x, receive, send)
    return out
