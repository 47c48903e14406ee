"""Counts the bytes that each rank sends in a training step.

    python -m benchmarks.communication

The bytes are counted at 2, 4 and 8 gloo ranks, and modelled for up to 1,024 ranks.
Each call of torch.distributed by this project is counted in a whole step, with the bytes that a rank sends to others.
The shuffle of the reference step is counted for comparison: an all-gather of the finished fp32 images.
An all-gather of n bytes counts as n bytes to each of the others, as in a ring.
An all-reduce of n bytes over w ranks counts as 2n(w-1)/w bytes.
The gradients' all-reduce is inside DistributedDataParallel, so it is modelled from the number of parameters.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.measuring import Row, number, parser, report, table
from moco import distributed
from moco.builder import MoCo
from moco.data.loader import Batch
from moco.distributed.global_batch import GlobalBatch
from moco.losses import WeightedLoss
from moco.pretrain.reference import ReferenceMoCo
from moco.pretrain.step import TrainingStep
from moco.world import World

DIM = 128
RESNET50 = 27_966_656  # parameters of ResNet-50 with MoCo v2's head of 128
WORLDS = (2, 4, 8)


class Counter:
    """Counts the bytes that this rank sends, by kind of tensor.

    Inside the `with` block it replaces functions of torch.distributed by functions that count.
    """

    def __init__(self) -> None:
        self.bytes: dict[str, int] = defaultdict(int)
        self._real = {name: getattr(dist, name) for name in ("all_gather", "all_to_all_single", "all_reduce")}

    def __enter__(self) -> Counter:
        def all_gather(parts: list[Tensor], x: Tensor, *more: Any, **named: Any) -> Any:
            self.bytes[self.kind(x)] += x.nbytes * (len(parts) - 1)
            return self._real["all_gather"](parts, x, *more, **named)

        def all_to_all_single(out: Tensor, x: Tensor, receive: list[int], send: list[int], **named: Any) -> Any:
            away = sum(send) - send[dist.get_rank()]
            self.bytes[self.kind(x)] += x.nbytes // max(1, len(x)) * away
            return self._real["all_to_all_single"](out, x, receive, send, **named)

        def all_reduce(x: Tensor, *more: Any, **named: Any) -> Any:
            self.bytes["sums"] += 2 * x.nbytes * (dist.get_world_size() - 1) // dist.get_world_size()
            return self._real["all_reduce"](x, *more, **named)

        self._set({"all_gather": all_gather, "all_to_all_single": all_to_all_single, "all_reduce": all_reduce})
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._real)

    @staticmethod
    def _set(functions: dict[str, Callable[..., Any]]) -> None:
        for name, function in functions.items():
            setattr(dist, name, function)

    @staticmethod
    def kind(x: Tensor) -> str:
        if x.dim() == 4:
            return "images"
        return "keys" if x.is_floating_point() else "labels and indices"


def model(world: int, n: int, size: int, parameters: int = RESNET50) -> dict[str, float]:
    """Returns the modelled bytes that a rank sends in a step.

    world: number of ranks. n: images of a rank. size: their side in px.
    A random row stays on its rank with probability 1/world.
    """
    away = (world - 1) / world
    return {
        "images": n * away * size**2 * 3,
        "images of the reference": n * (world - 1) * size**2 * 3 * 4,
        "keys": n * away * DIM * 4 + n * (world - 1) * DIM * 4,  # back from the shuffle; to every queue
        "labels and indices": n * away * 8 + n * (world - 1) * 8,
        "gradients": 2 * away * parameters * 4,
    }


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3)))


def images(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    return crops.permute(0, 3, 1, 2).float()


def counted(rank: int, world: int, port: int, n: int, size: int, reference: bool, out: Any) -> None:
    launched_as(rank, world, port)
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with distributed.session(World.launched(), device, 100):
        moco = (ReferenceMoCo if reference else MoCo)(Tiny(), DIM, K=64, bn="shuffle")
        optimizer = torch.optim.SGD(moco.parameters(), 0.1, fused=True)
        wrapped = distributed.data_parallel(moco, device)
        step = TrainingStep(wrapped, WeightedLoss(1.0), optimizer, images, GlobalBatch())  # type: ignore[arg-type]
        crops = torch.zeros(n, 2, size, size, 3, dtype=torch.uint8)
        batch = Batch(crops, torch.arange(n), torch.zeros(n, dtype=torch.long))
        with Counter() as counter:
            step(batch, 0, [n] * world)
        everyone = distributed.gather_objects(dict(counter.bytes))
        if rank == 0:
            out.put({kind: sum(one[kind] for one in everyone) / world for kind in everyone[0]})
        distributed.barrier()


def launched_as(rank: int, world: int, port: int) -> None:
    """Sets the environment variables that torchrun would set."""
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in launch.items()})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def count(world: int, n: int, size: int, reference: bool = False) -> dict[str, float]:
    """Returns the counted bytes by kind, as a mean over ranks.

    The ranks are forked, so torch is imported only once.
    """
    context = mp.get_context("fork")
    out = context.SimpleQueue()
    arguments = (world, free_port(), n, size, reference, out)
    mp.start_processes(counted, arguments, nprocs=world, start_method="fork")
    return out.get()


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(argv)
    if options.device == "cuda":
        raise SystemExit("error: bytes are counted on the CPU and are the same on a GPU: leave --device cuda out")
    worlds, n, size = ((2,), 4, 8) if options.trial else (WORLDS, 32, 224)
    ours = {world: count(world, n, size) for world in worlds}
    theirs = {world: count(world, n, size, reference=True) for world in worlds}
    rows = []
    for world in worlds:
        ratio = ours[world]["images"] / theirs[world]["images"]
        most = 1 / 16 if world == 8 else None
        rows.append(Row(f"shuffle, bytes per rank and step, {world} ranks", "all-gather of fp32 images", ratio,
                        at_most=most))  # fmt: skip
    modelled = {world: model(world, n, size) for world in (*WORLDS, 64, 256, 1024)}
    kinds = list(modelled[2])
    lines = [[f"{w:,}", *(f"{number(modelled[w][kind] / 1e6)} MB" for kind in kinds)] for w in modelled]
    print("\n".join(table(lines, ["ranks", *kinds])))
    for world in worlds:
        print(f"counted at {world} ranks:", {kind: f"{number(value / 1e6)} MB" for kind, value in ours[world].items()})
    report("communication", options, rows, counted=ours, counted_reference=theirs, modelled=modelled,
           images_per_rank=n, image_size=size)  # fmt: skip


if __name__ == "__main__":
    main()
