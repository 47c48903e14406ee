"""One of several ranks, alone: collectives that keep NCCL's rules, and are written down.

Nothing travels; torch's "fake" process group answers at once. A rank's record is compared with those of the others by
`disagreements`, which is what hangs on real GPUs. The rules, each a fault of the Gpu where it is broken:
  NCCL takes tensors of the GPU, contiguous, on the compute stream; gloo takes those of the host; Python objects go over
  gloo; nothing follows the destruction of the group.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

import moco.distributed
from moco.world import World, inside
from tests.gpu.pretended.gpu import Gpu
from tests.gpu.pretended.stand_ins import on_side_stream

session = sys.modules["moco.distributed.session"]  # the module; moco.distributed.session is its function
BUCKET = 25 * 2**20  # bytes of DistributedDataParallel's buckets


@dataclass(frozen=True)
class Call:
    """A collective of one rank. `rows`: what it sends to and gets from each rank, where that may differ."""

    name: str
    backend: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    sent: tuple[int, ...] = ()
    received: tuple[int, ...] = ()


def disagreements(of_ranks: list[list[Call]]) -> list[str]:
    """The first collective, if any, that the ranks do not enter alike. Empty: no rank waits for ever."""
    for number, calls in enumerate(zip(*of_ranks, strict=False)):
        alike = {(c.name, c.backend, c.dtype, c.shape if not c.sent else c.shape[1:]) for c in calls}
        if len(alike) > 1:
            return [f"collective {number} differs between ranks: {sorted(map(str, alike))}"]
        for me, mine in enumerate(calls):
            for other, theirs in enumerate(calls):
                if mine.sent and mine.sent[other] != theirs.received[me]:
                    return [f"collective {number}: rank {me} sends {mine.sent[other]} rows to rank {other},"
                            f" which expects {theirs.received[me]}"]  # fmt: skip
    lengths = {len(calls) for calls in of_ranks}
    return [f"the ranks make {sorted(lengths)} collectives"] if len(lengths) > 1 else []


class Parallel(nn.Module):
    """Stands in for DistributedDataParallel, whose reducer takes no FakeTensors: the gradients' all-reduces alone."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        super().__init__()
        self.module = module
        self.reducing = True
        self.bucket: list[Tensor] = []
        self.trained = [p for p in module.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._ready)

    def forward(self, *args: Any, **how: Any) -> Any:
        self.left = len(self.trained)
        return self.module(*args, **how)

    def _ready(self, parameter: Tensor) -> None:
        if not self.reducing or parameter.grad is None:
            return
        self.left -= 1
        self.bucket.append(parameter.grad)
        if self.left == 0 or sum(g.numel() * g.element_size() for g in self.bucket) >= BUCKET:
            dist.all_reduce(torch.cat([g.flatten() for g in self.bucket]))
            self.bucket = []

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.reducing = False
        try:
            yield
        finally:
            self.reducing = True


@contextmanager
def rank_of(world: int, rank: int, gpu: Gpu, patch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """This process is `rank` of `world`, on the GPU given, all on one node of eight. Yields its collectives."""
    calls: list[Call] = []
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": gpu.device.index, "LOCAL_WORLD_SIZE": 8}
    with patch.context() as here:
        for name, value in place.items():
            here.setenv(name, str(value))
        if world > 1:
            _pretend(here, gpu, calls)
        try:
            with inside(World.launched()):
                yield calls
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            session._cpu_group = None


def _pretend(patch: pytest.MonkeyPatch, gpu: Gpu, calls: list[Call]) -> None:
    gloo: list[Any] = []

    def join(backend: str, limit: Any) -> str:
        assert backend == "cpu:gloo,cuda:nccl", f"{backend} cannot carry both host and device tensors"
        world = int(os.environ["WORLD_SIZE"])
        dist.init_process_group("fake", store=FakeStore(), rank=int(os.environ["RANK"]), world_size=world)
        return "start"

    new_group = dist.new_group

    def make_group(*_: Any, backend: str | None = None, **__: Any) -> Any:
        group = new_group(backend="fake")
        if backend == "gloo":
            gloo.append(group)
        return group

    def note(name: str, group: Any, tensors: list[Tensor], sent: Any = (), received: Any = ()) -> None:
        over_gloo = any(group is one for one in gloo)
        for x in tensors:
            if not dist.is_initialized():
                gpu.fault(f"{name} after the group was destroyed")
            if x.is_cuda and over_gloo:
                gpu.fault(f"{name} of a GPU tensor over gloo")
            if x.is_cuda and not x.is_contiguous():
                gpu.fault(f"{name} of a tensor that is not contiguous, which NCCL refuses")
            if x.is_cuda and on_side_stream():
                gpu.fault(f"{name} on a side stream")
        x = tensors[0]
        backend = "nccl" if x.is_cuda else "gloo"
        calls.append(Call(name, backend, tuple(x.shape), x.dtype, tuple(sent), tuple(received)))

    def wrap(name: str, tensors_of: Callable[..., list[Tensor]]) -> None:
        real = getattr(dist, name)

        def collective(*args: Any, **how: Any) -> Any:
            splits = args[2:4] if name == "all_to_all_single" else ((), ())
            note(name, how.get("group"), tensors_of(*args), splits[1], splits[0])
            done = real(*args, **how)
            if name == "all_gather" and not args[1].is_cuda:
                for part in args[0]:
                    part.copy_(args[1])
            return done

        patch.setattr(dist, name, collective)

    wrap("all_reduce", lambda x, *_: [x])
    wrap("broadcast", lambda x, *_: [x])
    wrap("all_gather", lambda parts, x, *_: [x, *parts])
    for name in ("all_gather_into_tensor", "all_gather_single"):  # torch's SyncBatchNorm
        wrap(name, lambda out, x, *_: [x, out])
    wrap("all_to_all_single", lambda out, x, *_: [x, out])

    def objects(name: str, box: list[Any], value: Any, group: Any) -> None:
        if not any(group is one for one in gloo):
            gpu.fault(f"{name} over NCCL's group")
        calls.append(Call(name, "gloo", (), None))
        box[:] = [value] * len(box)

    def all_gather_object(box: list[Any], value: Any, group: Any = None) -> None:
        objects("all_gather_object", box, value, group)

    def broadcast_object_list(box: list[Any], src: int = 0, group: Any = None) -> None:
        objects("broadcast_object_list", box, box[0], group)

    def barrier(group: Any = None, **_: Any) -> None:
        objects("barrier", [], None, group)

    for stand_in in (all_gather_object, broadcast_object_list, barrier):
        patch.setattr(dist, stand_in.__name__, stand_in)
    patch.setattr(dist, "new_group", make_group)

    def everywhere(work: Callable[[], Any]) -> Any:
        """Stands in for on_rank_0: there is no rank 0 to ask."""
        moco.distributed.broadcast_object(None)
        return work()

    for name, module in list(sys.modules.items()):
        if name.startswith("moco.") and hasattr(module, "on_rank_0"):
            patch.setattr(module, "on_rank_0", everywhere)
    patch.setattr(moco.distributed, "on_rank_0", everywhere)
    patch.setattr(session, "_join", join)
    patch.setattr(session, "_connect", lambda *_, **__: dist.HashStore())
    patch.setattr(nn.parallel, "DistributedDataParallel", Parallel)
