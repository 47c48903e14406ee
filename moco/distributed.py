"""Everything that crosses ranks, and the only file that imports torch.distributed. At world size 1 each function is the identity.

Per-rank batch sizes are passed as Python lists (`sizes[r]` rows on rank r), so that uneven batches need no exchange of sizes
and no host-device synchronisation.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from moco.errors import InputError
from moco.randomness import permutation

T = TypeVar("T")

_cpu_group: dist.ProcessGroup | None = None  # for flags and small Python objects: never touches the accelerator's stream


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


def pick_device(wish: str) -> torch.device:
    """`wish`: 'cuda', 'cpu' or 'auto'. With CUDA, the device of this rank on its node."""
    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; install a CUDA build of torch or pass --device cpu")
    if local_rank() >= torch.cuda.device_count():
        raise InputError(
            f"{local_world_size()} processes on this node but {torch.cuda.device_count()} GPUs; pass a smaller --nproc_per_node"
        )
    return torch.device("cuda", local_rank())


@contextlib.contextmanager
def session(device: torch.device, timeout: float = 1800.0) -> Iterator[None]:
    """Joins the process group for the length of a `with` block: NCCL for CUDA, gloo for the CPU. `timeout` in seconds."""
    global _cpu_group
    if world_size() == 1:
        yield
        return
    limit = timedelta(seconds=timeout)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=limit)
        _cpu_group = dist.new_group(backend="gloo", timeout=limit)
    else:
        dist.init_process_group("gloo", timeout=limit)
        _cpu_group = dist.group.WORLD
    try:
        yield
    finally:
        _cpu_group = None
        dist.destroy_process_group()


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """DistributedDataParallel, without its per-step broadcast of buffers: the queue is the same everywhere by construction
    and is as large as the encoder. Rank 0's BatchNorm statistics are the ones that are saved (`broadcast_buffers`)."""
    if world_size() == 1:
        return module
    # the argument was renamed in torch 2.13
    renamed = "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **{"forward_sync_buffers" if renamed else "broadcast_buffers": False},
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


def any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is true on one. Travels on the CPU group: no host-device synchronisation."""
    if world_size() == 1:
        return flag
    vote = torch.tensor([int(flag)])
    dist.all_reduce(vote, op=dist.ReduceOp.MAX, group=_cpu_group)
    return bool(vote.item())


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, without gradient. A new tensor at world size > 1."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean over ranks, without gradient."""
    return all_reduce_sum(x) / world_size()


def broadcast_buffers(module: nn.Module) -> None:
    """Rank 0's buffers (BatchNorm statistics) on every rank: before an evaluation, so that all ranks measure one model."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_rows(x: Tensor, sizes: list[int] | None = None) -> Tensor:
    """Rows of all ranks in rank order, without gradient: [sizes[r], ...] on rank r -> [sum(sizes), ...] on every rank.

    `sizes` None means as many rows on every rank as here. Uneven parts are padded for the exchange (collectives take equal ones).
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


class _GatherRowsWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes  # type: ignore[attr-defined]
        return gather_rows(x, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # every rank's loss depends on these rows through its own copy: their gradients add up
        total = all_reduce_sum(grad.contiguous())
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]], None


class _AllReduceSumWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return all_reduce_sum(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return all_reduce_sum(grad)


class GlobalBatch:
    """How a loss sees the rest of the global batch (the `across` of `moco.losses`), with gradients.

    The gradient convention is DDP's: it averages the ranks' gradients, so a loss that is the same number L on every rank gets
    exactly the gradient of L, also when the ranks weight it unevenly by weights that sum to the world size.
    """

    def __init__(self, sizes: list[int] | None = None) -> None:
        self.sizes = sizes

    def gather(self, x: Tensor) -> tuple[Tensor, int]:
        """Rows of all ranks, and the position of this rank's first row among them."""
        if world_size() == 1:
            return x, 0
        sizes = self.sizes or [len(x)] * world_size()
        return _GatherRowsWithGrad.apply(x, sizes), sum(sizes[: rank()])

    def logsumexp(self, x: Tensor) -> Tensor:
        """log Σ_ranks exp(x) of a scalar."""
        if world_size() == 1:
            return x
        top = x.detach().clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
        return top + _AllReduceSumWithGrad.apply((x - top).exp()).log()


class RowShuffle:
    """Deals the rows of the global batch out to the ranks anew (MoCo's shuffle-BN), by an all-to-all of rows.

    MoCo gathers every image on every rank and keeps a part; here each row travels once, straight to its new rank. The
    permutation is a function of `key`, so every rank knows it without a broadcast. A single size permutes this rank's rows
    among themselves.
    """

    def __init__(self, key: int, sizes: list[int]) -> None:
        me, world = rank() if len(sizes) > 1 else 0, len(sizes)
        starts = [sum(sizes[:r]) for r in range(world + 1)]
        order = torch.from_numpy(permutation(key, starts[-1]))  # new position p holds old row order[p]
        owner = torch.bucketize(order, torch.tensor(starts[1:]), right=True)  # rank that holds old row order[p]
        mine = order[starts[me] : starts[me + 1]]  # old rows that come here, in their new order
        # what I send to rank r: my old rows among r's new ones, in r's order
        sent = [order[starts[r] : starts[r + 1]] for r in range(world)]
        sent = [rows[owner[starts[r] : starts[r + 1]] == me] - starts[me] for r, rows in enumerate(sent)]
        self.send_rows = torch.cat(sent)
        self.send_sizes = [len(rows) for rows in sent]
        # rows arrive grouped by sender, within a group in my order: a stable sort by sender says which is which
        sender = torch.bucketize(mine, torch.tensor(starts[1:]), right=True)
        self.arrival = torch.argsort(sender, stable=True)
        self.receive_sizes = torch.bincount(sender, minlength=world).tolist()

    def shuffle(self, x: Tensor) -> Tensor:
        """[sizes[rank], ...] -> [sizes[rank], ...]: this rank's part of the permuted global batch."""
        received = self._exchange(x[self.send_rows.to(x.device)], self.send_sizes, self.receive_sizes)
        out = torch.empty_like(received)
        out[self.arrival.to(x.device)] = received
        return out

    def unshuffle(self, x: Tensor) -> Tensor:
        """The inverse: rows back to the rank and place they came from."""
        returned = self._exchange(x[self.arrival.to(x.device)], self.receive_sizes, self.send_sizes)
        out = torch.empty_like(returned)
        out[self.send_rows.to(x.device)] = returned
        return out

    @staticmethod
    def _exchange(x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        if len(send) == 1:
            return x
        x = x.contiguous()
        out = x.new_empty((sum(receive), *x.shape[1:]))
        dist.all_to_all_single(out, x, receive, send)
        return out
