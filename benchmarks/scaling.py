"""Measures the growth of images/s from one rank to two.

    python -m benchmarks.scaling

Whole training steps of ResNet-18 at 64 px are timed, with one thread a rank, over gloo.
This is weak scaling: each rank has 64 images a step, so two ranks should train on twice the images in the same time.
One rank and two ranks run as processes of their own and train in turns. The others sleep meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp

from benchmarks.communication import free_port, launched_as
from benchmarks.measuring import Row, number, parser, report
from moco import distributed
from moco.builder import MoCo
from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.loader import Batch
from moco.distributed.global_batch import GlobalBatch
from moco.encoders import build_encoder
from moco.losses import WeightedLoss
from moco.pretrain.step import TrainingStep
from moco.world import World

CPU = torch.device("cpu")


def train(rank: int, world: int, port: int, arch: str, size: int, n: int, steps: int, turns: Any, times: Any) -> None:
    """Runs one rank, which trains `steps` steps in each turn.

    Rank 0 puts the seconds into `times`. A turn of False ends the rank.
    """
    if world > 1:
        launched_as(rank, world, port)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with distributed.session(World.launched(), CPU, 300):
        model = MoCo(build_encoder(arch, 128, mlp=True, image_size=size), K=4096)
        optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, fused=True)
        augment = Augment(find_recipe("v2"), 0)
        across, wrapped = GlobalBatch(), distributed.data_parallel(model, CPU)
        step = TrainingStep(wrapped, WeightedLoss(1.0, 0.2), optimizer, augment, across, channels_last=False)
        crops = torch.randint(0, 256, (n, 2, size, size, 3), dtype=torch.uint8)
        batch = Batch(crops, torch.arange(n) + n * rank, torch.full((n,), -1))
        while turns[rank].get():
            distributed.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                step(batch, 0, [n] * world)
            distributed.barrier()
            if rank == 0:
                times.put(time.perf_counter() - start)


def contender(world: int, *work: Any) -> tuple[Callable[[], float], Callable[[], None]]:
    """Starts the ranks and returns two functions.

    The first trains a turn and returns its seconds. The second ends the ranks.
    """
    context = mp.get_context("fork")
    turns, times = [context.SimpleQueue() for _ in range(world)], context.SimpleQueue()
    ranks = mp.start_processes(
        train, (world, free_port(), *work, turns, times), nprocs=world, join=False, start_method="fork"
    )

    def say(go_on: bool) -> None:
        for turn in turns:
            turn.put(go_on)

    def turn() -> float:
        say(True)
        while times.empty():
            ranks.join(timeout=0.02)  # raises if a rank has ended
        return times.get()

    def end() -> None:
        say(False)
        while not ranks.join():
            pass

    return turn, end


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(argv)
    if options.device == "cuda":
        raise SystemExit("error: this is about CPU ranks: leave --device cuda out")
    arch, size, n, steps = ("smallcnn", 16, 4, 1) if options.trial else ("resnet18", 64, 64, 2)
    both = {world: contender(world, arch, size, n, steps) for world in (1, 2)}
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(options.rounds + 1):
        for world, (train_a_turn, _) in both.items():
            taken = train_a_turn()
            if turn:  # the first is for warming up
                seconds[world].append(taken)
    for _, end in both.values():
        end()
    growth = statistics.median(2 * one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    for world, taken in seconds.items():
        print(f"{world} x 1 thread: {number(world * n * steps / statistics.median(taken))} images/s")
    rows = [Row("images/s at 2 ranks of 1 thread", "1 rank of 1 thread", growth, at_least=1.8)]
    report("scaling", options, rows, seconds=seconds, arch=arch, image_size=size, batch_per_rank=n, steps=steps)


if __name__ == "__main__":
    main()
