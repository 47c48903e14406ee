"""What test_distributed.py runs on several ranks: every check of this file, once, on as many ranks as there are.

    torchrun --standalone --nproc_per_node=2 tests/distributed/worker.py RESULTS.json
    python tests/distributed/worker.py RESULTS.json 8         # forks the ranks: the imports are paid once, not 8 times

Each rank compares what it got with what one process gets on the joined batch: it computes that itself, with the
launcher's variables out of sight (`one_process`). A check that fails on a rank writes its traceback into the results.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from moco import distributed
from moco.builder import MoCo
from moco.data.loader import Batch
from moco.data.source import ArraySource
from moco.distributed import rank, shares, world_size
from moco.distributed.global_batch import GlobalBatch
from moco.distributed.shuffle import RowShuffle
from moco.encoders import build_encoder, feature_dim
from moco.encoders.batchnorm import isolate_batchnorm
from moco.errors import InputError
from moco.evaluate.online import OnlineEvaluator
from moco.losses import LossOutput, WeightedLoss, align_loss, contrastive_loss, uniform_loss
from moco.losses.batch_keys import BatchKeysDecoupledLoss, BatchKeysLoss
from moco.losses.debiased import DebiasedLoss
from moco.losses.decoupled import DecoupledLoss, InBatchDecoupledLoss
from moco.losses.hard import HardContrastiveLoss, SimpleLoss
from moco.losses.in_batch import CONTRASTIVE, InBatchLoss
from moco.losses.supcon import SupConLoss
from moco.pretrain.online_probe import OnlineProbe
from moco.pretrain.reference import ReferenceMoCo
from moco.pretrain.step import TrainingStep
from moco.randomness import permutation
from moco.run.meter import Meter
from moco.run.options import DataOptions
from moco.world import World, current, inside
from tests.reliability.runs import free_port

CPU = torch.device("cpu")
CHECKS: dict[str, Callable[[], None]] = {}
EXACT = dict(rtol=1e-10, atol=1e-10)
CLOSE = dict(rtol=1e-4, atol=2e-6)  # fp32 sums in another order, through a few steps


def check(work: Callable[[], None]) -> Callable[[], None]:
    CHECKS[work.__name__] = work
    return work


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    with inside(World()):
        yield


def batches() -> list[list[int]]:
    """Shares of a batch that all ranks get equally, and of two that they cannot."""
    world = world_size()
    return [[3] * world, shares(2 * world + 1, world), shares(world + 1, world)]


def mine(sizes: list[int]) -> slice:
    return slice(sum(sizes[: rank()]), sum(sizes[: rank() + 1]))


def made_up(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same on all ranks."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- rows that travel --------------------------------------------------------------------------------------------------


@check
def rows_are_gathered_in_rank_order() -> None:
    for sizes in batches():
        for full in (
            made_up(sum(sizes), 3, 2),
            torch.arange(sum(sizes)),
            torch.arange(2 * sum(sizes)).view(-1, 2) % 2 == 0,
        ):
            part = full[mine(sizes)]
            assert distributed.gather_rows(part, sizes).equal(full)
            if len(set(sizes)) == 1:
                assert distributed.gather_rows(part).equal(full)
    leaf = made_up(2, 2).requires_grad_()
    assert not distributed.gather_rows(leaf).requires_grad


@check
def rows_are_exchanged() -> None:
    """Rank r sends r + s + 1 rows to rank s, each saying from where to where it goes and which of them it is."""
    me, ranks = rank(), range(world_size())
    rows = [[me, other, i] for other in ranks for i in range(me + other + 1)]
    counts = [me + other + 1 for other in ranks]
    came = distributed.exchange_rows(torch.tensor(rows), counts, counts)
    assert came.tolist() == [[other, me, i] for other in ranks for i in range(me + other + 1)]


@check
def shuffle_is_the_stated_permutation_and_unshuffle_its_inverse() -> None:
    for sizes in batches():
        total = sum(sizes)
        for key in (0, 1, 2**63 + 5):
            shuffle = RowShuffle(key, sizes)
            for full in (made_up(total, 2, 3), torch.arange(total)):
                part = full[mine(sizes)]
                moved = shuffle.shuffle(part)
                assert len(moved) == len(part)
                assert distributed.gather_rows(moved, sizes).equal(full[torch.from_numpy(permutation(key, total))])
                assert shuffle.unshuffle(moved).equal(part)
                assert shuffle.shuffle(shuffle.unshuffle(part)).equal(part)


@check
def shuffle_within_a_rank_stays_there() -> None:
    full = torch.arange(7) + 100 * rank()
    shuffle = RowShuffle(5 + rank(), [7])
    assert shuffle.shuffle(full).equal(full[torch.from_numpy(permutation(5 + rank(), 7))])
    assert shuffle.unshuffle(shuffle.shuffle(full)).equal(full)


# -- small things that ranks tell each other ---------------------------------------------------------------------------


@check
def a_vote_is_answered_one_call_later() -> None:
    me, last = rank(), rank() == world_size() - 1
    vote = distributed.LateVote()
    assert vote(False, False) == [False, False]
    assert vote(last, False) == [False, False], "raised in this call"
    # other collectives may come between a vote and its answer
    assert distributed.gather_objects(me) == list(range(world_size()))
    assert vote(last, me == 0) == [True, False], "nothing is under way now"
    assert vote(last, me == 0) == [False, False]
    assert vote(False, False, now=True) == [True, True]
    assert vote(False, False) == [False, False]
    assert vote(False, False) == [False, False]
    assert vote(False, last, now=True) == [False, True]
    assert vote(False, False, now=True) == [False, False]


@check
def a_vote_waits_for_no_rank() -> None:
    """Rank 1 votes after rank 0 has returned from its vote; if a call waited for the other, none would end."""
    store = dist.distributed_c10d._get_default_store()
    vote = distributed.LateVote()
    for number in range(3):
        if rank() == 1:
            store.wait([f"voted {number}"])
        assert vote(rank() == 0 and number == 1) == [number == 2]
        if rank() == 0:
            store.set(f"voted {number}", "yes")
        distributed.barrier()


@check
def sums_flags_and_objects() -> None:
    world, me = world_size(), rank()
    x = torch.tensor([me + 1.0, -me])
    total = world * (world - 1) // 2
    assert distributed.all_reduce_sum(x).tolist() == [total + world, -total]
    assert distributed.all_reduce_max(x).tolist() == [world, 0]
    assert x.tolist() == [me + 1.0, -me], "the argument must stay as it was"
    assert distributed.broadcast_object({"from": me}) == {"from": 0}
    assert distributed.gather_objects(("rank", me)) == [("rank", r) for r in range(world)]
    assert distributed.shares(world + 1, world) == [2] + [1] * (world - 1)
    assert list(range(world + 1))[distributed.share(world + 1)] == ([0, 1] if me == 0 else [me + 1])
    assert current() == World(me, world, me, world)
    distributed.barrier()


@check
def rank_0_decides_and_its_refusal_is_everyones() -> None:
    calls = []

    def decide() -> str:
        calls.append(rank())
        return "decided"

    assert distributed.on_rank_0(decide) == "decided"
    assert calls == ([0] if rank() == 0 else [])

    def refuse() -> None:
        raise InputError("the folder is in use")

    with pytest.raises(InputError, match="the folder is in use"):
        distributed.on_rank_0(refuse)


@check
def buffers_of_rank_0_are_broadcast() -> None:
    layer = nn.BatchNorm1d(3)
    layer.running_mean.fill_(rank() + 1.0)
    layer.num_batches_tracked.fill_(rank())
    distributed.broadcast_buffers(layer)
    assert layer.running_mean.tolist() == [1.0] * 3 and layer.num_batches_tracked == 0


@check
def meters_weigh_every_sample_the_same() -> None:
    for sizes in batches():
        values = made_up(sum(sizes))
        meter = Meter()
        for _ in range(2):
            meter.add({"a": values[mine(sizes)].mean(), "b": torch.tensor(2.0)}, sizes[rank()])
        read = meter.read()
        torch.testing.assert_close(read["a"], values.mean().item(), **EXACT)
        assert read["b"] == 2.0 and meter.read() == {}


# -- losses: several processes and one, in float64 ---------------------------------------------------------------------


DIM, LENGTH = 4, 6


def spread(loss: Any, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The loss over all samples, and this rank's rows of its gradient to the raw queries and keys, as DDP would
    make it:
    each rank weights its loss by its share of the samples, and the gradients are averaged."""
    total = sum(sizes)
    raw_q, raw_k = (made_up(total, DIM, seed=s)[mine(sizes)].requires_grad_() for s in (1, 2))
    queue = F.normalize(made_up(DIM, LENGTH, seed=3), dim=0)
    loss = loss(F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1), queue).loss
    (loss * (sizes[rank()] * world_size() / total)).backward()
    grads = [torch.zeros_like(raw_q) if x.grad is None else x.grad / world_size() for x in (raw_q, raw_k)]
    return distributed.all_reduce_sum(loss * sizes[rank()] / total), grads[0], grads[1]


def joined(loss: Callable[[Tensor, Tensor, Tensor], Tensor], sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """One process on the joined batch: the loss, and the same rows of its gradient."""
    with one_process():
        raw_q, raw_k = (made_up(sum(sizes), DIM, seed=s).requires_grad_() for s in (1, 2))
        queue = F.normalize(made_up(DIM, LENGTH, seed=3), dim=0)
        value = loss(F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1), queue)
        gradients = torch.autograd.grad(value, (raw_q, raw_k), materialize_grads=True)
    return value.detach(), gradients[0][mine(sizes)], gradients[1][mine(sizes)]


@check
def per_anchor_losses_equal_one_process() -> None:
    for sizes in batches():
        loss = WeightedLoss(0.5, 0.2, 3.0, 1.5)
        torch.testing.assert_close(
            spread(loss, sizes),
            joined(lambda q, k, queue: 0.5 * contrastive_loss(q, k, queue, 0.2) + 3 * align_loss(q, k, 1.5), sizes),
            **EXACT,
        )


@check
def uniformity_is_the_mean_of_the_ranks_losses() -> None:
    """A log of a mean is not a mean of logs: without --unif-global, each rank's uniformity is of its own queries."""
    for sizes in batches():
        for intra_batch in (True, False):

            def means(
                q: Tensor, k: Tensor, queue: Tensor, sizes: list[int] = sizes, intra: bool = intra_batch
            ) -> Tensor:
                parts = zip(q.split(sizes), sizes, strict=True)
                return sum(
                    (n / sum(sizes) * uniform_loss(part, queue, 2.0, intra) for part, n in parts), q.new_zeros(())
                )

            torch.testing.assert_close(
                spread(WeightedLoss(0.0, unif_w=1.0, unif_t=2.0, intra_batch=intra_batch), sizes),
                joined(means, sizes),
                **EXACT,
            )


@check
def global_uniformity_equals_one_process() -> None:
    """Pairs of queries on different ranks included, each counted once."""

    def alone(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return WeightedLoss(0.25, 0.3, 2.0, 2.0, 1.0, 3.0, True)(q, k, queue).loss

    for sizes in batches():
        for intra_batch in (True, False):
            loss = WeightedLoss(0.0, unif_w=1.0, unif_t=2.0, intra_batch=intra_batch, across=GlobalBatch(sizes))
            one = joined(lambda q, k, queue, intra=intra_batch: uniform_loss(q, queue, 2.0, intra), sizes)
            torch.testing.assert_close(spread(loss, sizes), one, **EXACT)
        mixed = WeightedLoss(0.25, 0.3, 2.0, 2.0, 1.0, 3.0, True, GlobalBatch(sizes))
        torch.testing.assert_close(spread(mixed, sizes), joined(alone, sizes), **EXACT)
    # without sizes the shares are taken to be equal
    even = [2] * world_size()
    loss = WeightedLoss(0.0, unif_w=1.0, unif_t=2.0, across=GlobalBatch())
    torch.testing.assert_close(
        spread(loss, even), joined(lambda q, k, queue: uniform_loss(q, queue, 2.0), even), **EXACT
    )


@check
def losses_without_a_queue_equal_one_process() -> None:
    """Negatives and pairs on other ranks included, with gradients to both ends, and uneven shares."""
    for sizes in batches():
        for w in ((1.0, 0.0, 0.0), (0.0, 3.0, 1.0), (0.5, 1.0, 2.0)):
            for negatives in CONTRASTIVE:
                alone = InBatchLoss(w[0], 0.2, w[1], 1.5, w[2], 2.0, negatives=negatives)
                several = dataclasses.replace(alone, across=GlobalBatch(sizes))
                one = joined(lambda q, k, queue, alone=alone: alone(q, k, queue).loss, sizes)
                torch.testing.assert_close(spread(several, sizes), one, **EXACT)


@check
def decoupled_losses_equal_one_process() -> None:
    """The weights' mean is over all ranks' pairs, and has a gradient to all of them."""
    for sizes in batches():
        for kind in (DecoupledLoss, InBatchDecoupledLoss):
            for sigma in (None, 0.5):
                alone = kind(0.2, sigma)
                several = dataclasses.replace(alone, across=GlobalBatch(sizes))
                one = joined(lambda q, k, queue, alone=alone: alone(q, k, queue).loss, sizes)
                torch.testing.assert_close(spread(several, sizes), one, **EXACT)


@check
def losses_of_each_query_by_itself_equal_one_process() -> None:
    for loss in (HardContrastiveLoss(0.2, 0.4), SimpleLoss(1.0, 0.4), DebiasedLoss(0.5, 0.1, 1.0)):
        for sizes in batches():
            one = joined(lambda q, k, queue, loss=loss: loss(q, k, queue).loss, sizes)
            torch.testing.assert_close(spread(loss, sizes), one, **EXACT)


# -- whole training steps ----------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Without BatchNorm, so that samples do not see each other; remembers its images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.fc = nn.Linear(4 * 9, DIM)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.fc(torch.tanh(self.conv(x)).flatten(1))


def augment(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    """A function of image, index, epoch and view, so that a crop with another's index is found out."""
    x = crops.permute(0, 3, 1, 2).float() / 128 - 1
    return x * torch.cos(index + epoch + view).view(-1, 1, 1, 1)


def training_step(
    loss: Any,
    across: GlobalBatch,
    bn: str | None = None,
    encoder: nn.Module | None = None,
    kind: type[MoCo] = MoCo,
    K: int = 7,
    of_model: dict[str, Any] | None = None,
    **arguments: Any,
) -> TrainingStep:
    torch.manual_seed(11)
    model = kind(encoder or Net(), dim=DIM, K=K, m=0.5, bn=bn, bn_group_size=2, seed=3, **of_model or {})
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, weight_decay=1e-2, fused=True)
    return TrainingStep(distributed.data_parallel(model, CPU), loss, optimizer, augment, across, **arguments)


def batch(step: int, total: int, part: slice, small: int = 0) -> Batch:
    """small: number of small crops, which are of the large ones' size here, for the network's sake."""
    generator = torch.Generator().manual_seed(100 + step)
    crops = torch.randint(0, 256, (total, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
    more = torch.randint(0, 256, (total, small, 8, 8, 3), generator=generator, dtype=torch.uint8)[part]
    index = torch.arange(total)[part]
    return Batch(crops[part], index + 1000 * step, index % 3, more if small else None)


def train(step: TrainingStep, all_sizes: list[list[int]], small: int = 0) -> list[dict[str, float]]:
    """One step per entry; what it logged, as means over all ranks."""
    logged = []
    for number, sizes in enumerate(all_sizes):
        meter = Meter()
        part = mine(sizes) if world_size() > 1 else slice(None)
        here = sizes if world_size() > 1 else [sum(sizes)]
        values, measured = step(batch(number, sum(sizes), part, small), 1, here, measure=True)
        measured = {name: measured[name] for name in ("acc1", "alignment") if name in measured}
        meter.add({**values, **measured}, here[rank()])
        logged.append(meter.read())
    return logged


def state(step: TrainingStep) -> dict[str, Tensor]:
    return {**step.moco.state_dict(), "labels": step.moco.queue_labels, "filled": step.moco.filled}


def assert_equal_training(several: TrainingStep, one: TrainingStep, all_sizes: list[list[int]], small: int = 0) -> None:
    start = {name: value.clone() for name, value in state(several).items()}
    logged = train(several, all_sizes, small)
    with one_process():
        expected = train(one, all_sizes, small)
    for here, there in zip(logged, expected, strict=True):
        assert here.keys() == there.keys()
        torch.testing.assert_close(here, there, **CLOSE)
    final = state(several)
    torch.testing.assert_close(final, state(one), **CLOSE)
    moved = [name for name in final if not torch.allclose(final[name].float(), start[name].float(), atol=1e-3)]
    still = final.keys() - {*moved, "queue_ptr"}  # the pointer may be back where it was
    if not several.moco.K:
        still -= {"queue", "labels", "filled"}
    assert not still, f"{still} did not move: a test of nothing"


def rounds() -> list[list[int]]:
    return batches() + batches()[:2]


@check
def training_with_infonce_equals_one_process() -> None:
    """Shuffle included: without BatchNorm the company of a key does not matter, and keys must find their way back."""
    for arguments in ({}, {"grad_clip": 0.05}):
        several = training_step(WeightedLoss(), GlobalBatch(), "shuffle", **arguments)
        with one_process():
            one = training_step(WeightedLoss(), GlobalBatch(), "local", **arguments)
        assert_equal_training(several, one, rounds())


@check
def split_batchnorm_has_the_gradients_of_the_groups_of_all_ranks() -> None:
    """Two groups a rank, in either memory format: one process on the joined batch has the same groups."""
    n, world = 8 * world_size(), world_size()
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(n, 3, 5, 5, generator=generator) + torch.arange(n).view(-1, 1, 1, 1)
    target = torch.randn(n, 4, generator=generator)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.AvgPool2d(3), nn.Flatten())
        one = isolate_batchnorm(net, "split", 4).to(memory_format=layout)
        several = distributed.data_parallel(copy.deepcopy(one), CPU)
        part = mine(shares(n, world))
        (several(images[part].to(memory_format=layout)) * target[part]).sum(1).mean().backward()
        (one(images.to(memory_format=layout)) * target).sum(1).mean().backward()
        for a, b in zip(several.parameters(), one.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        assert one[1].weight.grad.abs().min() > 1e-3  # type: ignore[union-attr, operator]


@check
def sync_batchnorm_equals_one_process() -> None:
    """Plain BatchNorm over the whole batch, its shares uneven: gradients and running statistics, in either layout."""
    sizes = shares(2 * world_size() + 1, world_size())
    images = made_up(sum(sizes), 3, 5, 5, dtype=torch.float32) * 3 + 2
    target = made_up(sum(sizes), 4, seed=1, dtype=torch.float32)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.AvgPool2d(3), nn.Flatten(),
                            nn.BatchNorm1d(4)).to(memory_format=layout)  # fmt: skip
        synced = isolate_batchnorm(copy.deepcopy(net), "sync")
        several = distributed.data_parallel(synced, CPU)
        part = mine(sizes)
        summed = (several(images[part].to(memory_format=layout)) * target[part]).sum()
        (summed * world_size() / sum(sizes)).backward()
        ((net(images.to(memory_format=layout)) * target).sum() / sum(sizes)).backward()
        for (name, a), b in zip(synced.named_parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, **CLOSE, msg=lambda told, name=name: f"{name}: {told}")
        assert net[0].weight.grad.abs().max() > 1e-2  # type: ignore[union-attr, operator]
        for a, b in zip(synced.buffers(), net.buffers(), strict=True):
            torch.testing.assert_close(a, b)


class Learned(nn.Module):
    """A loss with a trained temperature, and the mean similarity of its samples as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.register_buffer("similarity", torch.tensor(0.0))

    def forward(self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor) -> LossOutput:
        self.similarity.copy_((q * k).sum(1).mean().detach())
        return LossOutput(contrastive_loss(self.scale * q, k, queue, 1.0), {})


@check
def a_loss_with_state_equals_one_process() -> None:
    """Its parameter's gradient is the mean over all samples, also of uneven parts; its buffer the mean over ranks."""
    several = training_step(Learned(), GlobalBatch(), "shuffle", accum_steps=2)
    with one_process():
        one = training_step(Learned(), GlobalBatch(), "local", accum_steps=2)
    for step in (several, one):
        step.optimizer.add_param_group({"params": step.loss_state.parameters, "momentum": 0.0})
    assert_equal_training(several, one, [[2] * world_size(), shares(2 * world_size() + 1, world_size())])
    torch.testing.assert_close(several.loss.scale, one.loss.scale, **CLOSE)  # type: ignore[attr-defined]
    assert abs(several.loss.scale.item() - 3) > 1e-3  # type: ignore[attr-defined]
    assert distributed.gather_objects(several.loss.similarity.item())[0] == several.loss.similarity.item()  # type: ignore[attr-defined]


@check
def accumulated_steps_equal_one_process_on_the_whole_batch() -> None:
    loss = WeightedLoss(1.0, 0.2, 1.0)
    several = training_step(loss, GlobalBatch(), "shuffle", accum_steps=2)
    with one_process():
        one = training_step(loss, GlobalBatch(), "local")
    sizes = [shares(n, world_size()) for n in (2 * world_size() + 1, 3 * world_size() - 1)]
    assert_equal_training(several, one, [*sizes, *sizes])


@check
def symmetric_training_equals_one_process() -> None:
    """The queue too: view 1's keys of all ranks, then view 0's. With labels from all ranks, and in parts."""
    for arguments in ({}, {"accum_steps": 2}):
        sizes = [shares(n, world_size()) for n in (2 * world_size() + 1, 3 * world_size() - 1)] * 2
        several = training_step(SupConLoss(0.2), GlobalBatch(), "shuffle", symmetric=True, **arguments)
        with one_process():
            one = training_step(SupConLoss(0.2), GlobalBatch(), "local", symmetric=True)
        assert_equal_training(several, one, sizes)


@check
def a_queue_for_each_view_equals_one_process() -> None:
    sizes = [shares(n, world_size()) for n in (2 * world_size() + 1, 3 * world_size() - 1)] * 2
    two = {"queue_per_view": True}
    several = training_step(SupConLoss(0.2), GlobalBatch(), "shuffle", symmetric=True, of_model=two)
    with one_process():
        one = training_step(SupConLoss(0.2), GlobalBatch(), "local", symmetric=True, of_model=two)
    assert_equal_training(several, one, sizes)
    torch.testing.assert_close(several.moco.queue_for(0), one.moco.queue_for(0), **CLOSE)


@check
def training_without_a_queue_equals_one_process() -> None:
    across = GlobalBatch()
    several = training_step(InBatchDecoupledLoss(0.2, 0.5, across), across, K=0)
    with one_process():
        one = training_step(InBatchDecoupledLoss(0.2, 0.5), GlobalBatch(), K=0)
    assert_equal_training(several, one, rounds())
    for w in ((1.0, 0.0, 0.0), (0.0, 3.0, 1.0)):
        across = GlobalBatch()
        several = training_step(InBatchLoss(w[0], 0.2, w[1], 2.0, w[2], 2.0, across=across), across, K=0)
        with one_process():
            one = training_step(InBatchLoss(w[0], 0.2, w[1], 2.0, w[2], 2.0), GlobalBatch(), K=0)
        assert_equal_training(several, one, rounds())


@check
def training_with_the_batchs_keys_equals_one_process() -> None:
    """MoCo v3: negatives on other ranks, uneven shares, a predictor, both views."""
    losses = [BatchKeysLoss(1.0, 0.4), BatchKeysLoss(0.5, 0.4, 1.0, 2.0, 1.0, 2.0), BatchKeysDecoupledLoss(0.3, 0.5)]
    for loss in losses:
        both = []
        for bn in ("shuffle", "local"):
            with one_process() if bn == "local" else contextlib.nullcontext():
                across = GlobalBatch()
                torch.manual_seed(4)
                predictor = nn.Sequential(nn.Linear(DIM, 5), nn.Tanh(), nn.Linear(5, DIM))
                of_model = {"keys": "batch", "predictor": predictor}
                spread_loss = dataclasses.replace(loss, across=across)
                both.append(training_step(spread_loss, across, bn, of_model=of_model, symmetric=True))
        assert_equal_training(both[0], both[1], rounds())


@check
def multi_crop_equals_one_process() -> None:
    """In parts, symmetric, over the queue; and over the batch's keys."""
    sizes = [shares(n, world_size()) for n in (2 * world_size() + 1, 3 * world_size() - 1)]
    queue = {"symmetric": True, "accum_steps": 2}
    for loss, of_model, more in (
        (WeightedLoss(1.0, 0.2, 1.0), {}, queue),
        (BatchKeysLoss(1.0, 0.4), {"keys": "batch"}, {}),
    ):
        both = []
        for bn in ("shuffle", "local"):
            with one_process() if bn == "local" else contextlib.nullcontext():
                across = GlobalBatch()
                of_ranks = dataclasses.replace(loss, across=across)
                arguments = more if bn == "shuffle" else {**more, "accum_steps": 1}
                both.append(training_step(of_ranks, across, bn, of_model=of_model, **arguments))
        assert_equal_training(both[0], both[1], sizes, small=2)


@check
def online_probes_step_with_the_mean_gradient() -> None:
    """Of all ranks' samples: one step of several ranks is that of one process."""
    total = 2 * world_size() + 1
    generator = torch.Generator().manual_seed(1)
    encoder = build_encoder("smallcnn", 8)
    features = torch.randn(total, feature_dim(encoder), generator=generator)
    labels = torch.arange(total) % 3
    of_ranks = OnlineProbe(encoder, 3)
    mine = rank()
    part = shares(total, world_size())
    for _ in range(3):
        of_ranks.step(features.split(part)[mine], labels.split(part)[mine], total)
    with one_process():
        of_one = OnlineProbe(encoder, 3)
        for _ in range(3):
            of_one.step(features, labels, total)
    for name, value in of_one.classifier.state_dict().items():
        torch.testing.assert_close(of_ranks.classifier.state_dict()[name], value)


class MeanOfParts:
    """One process that computes what several do: a loss per share of the batch, weighted by its samples."""

    def __init__(self, loss: WeightedLoss, rounds: list[list[int]]) -> None:
        self.loss, self.sizes = loss, {sum(sizes): sizes for sizes in rounds}

    def __call__(self, q: Tensor, k: Tensor, queue: Tensor, labels: Any = None, queue_labels: Any = None) -> LossOutput:
        sizes = self.sizes[len(q)]
        outputs = [self.loss(*part, queue) for part in zip(q.split(sizes), k.split(sizes), strict=True)]
        shares_of = torch.tensor(sizes) / len(q)
        loss = torch.stack([out.loss for out in outputs]) @ shares_of
        return LossOutput(
            loss, {name: torch.stack([o.logs[name] for o in outputs]) @ shares_of for name in outputs[0].logs}
        )


@check
def training_with_align_uniform_equals_one_process() -> None:
    loss = WeightedLoss(0.0, align_w=3.0, unif_w=1.0)
    several, parts = training_step(loss, GlobalBatch(), "shuffle"), MeanOfParts(loss, rounds())
    with one_process():
        one = training_step(parts, GlobalBatch(), "local")
    assert_equal_training(several, one, rounds())

    across = GlobalBatch()
    several = training_step(WeightedLoss(0.0, align_w=3.0, unif_w=1.0, across=across), across, "shuffle")
    with one_process():
        one = training_step(loss, GlobalBatch(), "local")
    assert_equal_training(several, one, rounds())


@check
def queue_and_weights_are_the_same_bits_on_all_ranks() -> None:
    """With BatchNorm and uneven shares; only BatchNorm's statistics are each rank's own."""
    for bn in ("shuffle", "split", "local"):
        encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, DIM))
        step = training_step(WeightedLoss(1.0, 0.2, 1.0, 2.0, 1.0), GlobalBatch(), bn, encoder)
        train(step, rounds())
        names = [name for name in state(step) if "running_" not in name]
        for name in names:
            values = distributed.gather_objects(state(step)[name])
            assert all(value.equal(values[0]) for value in values), f"{bn}: {name} differs"
        assert int(step.moco.filled) == 7 and int(step.moco.queue_ptr) == sum(map(sum, rounds())) % 7
        means = distributed.gather_objects(step.moco.encoder_q[1].running_mean)
        assert not all(mean.equal(means[0]) for mean in means), "each rank should see other samples"


@check
def key_images_are_spread_over_the_ranks() -> None:
    """`shuffle`: what the key encoders see, rank after rank, is the permuted batch, another one in the next step;
    `split`
    and `local` send nothing."""
    sizes = batches()[1]
    orders = []
    for bn in ("shuffle", "split", "local"):
        step = training_step(WeightedLoss(), GlobalBatch(), bn)
        for number in range(2):
            part = batch(number, sum(sizes), mine(sizes))
            step(part, 0, sizes)
            seen = step.moco.encoder_k.seen[-1]
            crops, index = (distributed.gather_rows(x, sizes) for x in (part.crops, part.index))
            images = [augment(crops[:, view], index, 0, view) for view in (0, 1)]
            assert step.moco.encoder_q.seen[-1].equal(images[0][mine(sizes)])
            everywhere = distributed.gather_rows(seen, sizes)
            order = [next(i for i, image in enumerate(images[1]) if image.equal(row)) for row in everywhere]
            assert sorted(order) == list(range(sum(sizes)))
            here = set(range(sum(sizes))[mine(sizes)])
            stays = distributed.gather_objects(set(order[mine(sizes)]) == here)
            assert all(stays) == (bn != "shuffle"), (bn, order)
            assert (order == list(range(sum(sizes)))) == (bn == "local"), (bn, order)
            orders.append(tuple(order))
    assert orders[0] != orders[1] and orders[2] != orders[3]


@check
def slow_shuffle_equals_the_fast_one() -> None:
    """The same keys' images on the same ranks, by an all-gather of all of them; the same keys back; so BatchNorm sees
    the same company."""
    for bn in ("shuffle", "split"):
        both = []
        for kind in (MoCo, ReferenceMoCo):
            encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, DIM))
            torch.manual_seed(5)
            for p in encoder.parameters():
                torch.nn.init.normal_(p)
            both.append(training_step(WeightedLoss(), GlobalBatch(), bn, encoder, kind))
        for step in both:
            train(step, rounds()[:1])
        assert both[0].moco.queue.equal(both[1].moco.queue), bn
        for step in both:
            train(step, rounds())
        torch.testing.assert_close(state(both[0]), state(both[1]), rtol=1e-3, atol=1e-4)


@check
def permutations_within_ranks_differ_between_them() -> None:
    step = training_step(WeightedLoss(), GlobalBatch(), "split")
    step(batch(0, 8 * world_size(), mine([8] * world_size())), 0, [8] * world_size())
    sizes = [8] * world_size()
    part = batch(0, sum(sizes), mine(sizes))
    images = augment(part.crops[:, 1], part.index, 0, 1)
    order = [next(i for i, image in enumerate(images) if image.equal(row)) for row in step.moco.encoder_k.seen[-1]]
    assert len(set(map(tuple, distributed.gather_objects(order)))) > 1


@check
def ranks_log_the_same_names_when_one_has_a_single_sample() -> None:
    """Uniformity needs two; a rank without it would wait for a sum of another length."""
    sizes = shares(world_size() + 1, world_size())
    step = training_step(WeightedLoss(), GlobalBatch())
    _, measured = step(batch(0, sum(sizes), mine(sizes)), 0, sizes, measure=True)
    names = distributed.gather_objects(list(measured))
    assert all(own == names[0] for own in names), names


@check
def a_bad_gradient_on_one_rank_stops_the_step_on_all() -> None:
    class Sick(WeightedLoss):
        def __call__(self, q: Tensor, *arguments: Any, **named: Any) -> LossOutput:
            loss, logs = super().__call__(q, *arguments, **named)
            return LossOutput(
                loss * (float("nan") if rank() == world_size() - 1 and step.moco.step == 2 else 1.0), logs
            )

    step = training_step(Sick(), GlobalBatch())
    sizes = [2] * world_size()
    for number in range(3):
        before = {name: value.detach().clone() for name, value in step.moco.encoder_q.named_parameters()}
        step(batch(number, sum(sizes), mine(sizes)), 0, sizes)
        same = all(value.equal(before[name]) for name, value in step.moco.encoder_q.named_parameters())
        assert same == (number == 1)
        assert step.guard.not_applied() == (int(number >= 1), 2 if number == 1 else 0)
    assert all(value.isfinite().all() for value in state(step).values())


# -- evaluation --------------------------------------------------------------------------------------------------------


@check
def online_figures_are_those_of_one_process() -> None:
    """Five validation images: of 8 ranks, three have none. BatchNorm statistics are rank 0's."""

    def images(n: int) -> ArraySource:
        pixels = (torch.arange(n * 192) * 7919 % 251).view(n, 8, 8, 3).numpy().astype("uint8")
        return ArraySource(pixels, np.arange(n) % 2, ["a", "b"], "made up")

    torch.manual_seed(0)
    encoder = build_encoder("smallcnn", 6).train()
    encoder(made_up(16, 3, 8, 8, seed=rank(), dtype=torch.float32))  # other statistics on every rank
    make = functools.partial(
        OnlineEvaluator, images(11), images(5), DataOptions(workers=1), CPU, recipe="digits", size=8, seed=3, k=3
    )
    evaluator = make()
    got = dict(evaluator(encoder))
    with one_process():
        expected = dict(make()(encoder))
    assert got.keys() == expected.keys() and len(got) == 4
    assert all(got[name] == pytest.approx(value, abs=1e-5) for name, value in expected.items()), (got, expected)
    assert distributed.gather_objects(got) == [got] * world_size()


def main(results: str) -> None:
    failures = {}
    with distributed.session(World.launched(), CPU, timeout=100):
        for name, work in CHECKS.items():
            try:
                work()
            except Exception:
                traceback.print_exc()  # for the case that the others now wait in vain, and nobody gets to the results
                failures[name] = f"rank {rank()}:\n{traceback.format_exc()}"
        everyones = distributed.gather_objects(failures)
    if rank() == 0:
        passed_or_not = {name: [f[name] for f in everyones if name in f] for name in CHECKS}
        Path(results).write_text(json.dumps(passed_or_not))


def forked(world: int, results: str) -> None:
    """Starts `main` in `world` processes, with the variables that torchrun would set."""
    port = free_port()
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    for r in range(world):
        if os.fork() == 0:
            os.environ.update({name: str(value) for name, value in {**common, "RANK": r, "LOCAL_RANK": r}.items()})
            main(results)
            os._exit(0)
    for _ in range(world):
        os.wait()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        forked(int(sys.argv[2]), sys.argv[1])
    else:
        main(sys.argv[1])
