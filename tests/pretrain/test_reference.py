"""Every fast path equals its slow one: the trainer's step with its slow paths, and MoCo's algorithm in plain PyTorch.

Between ranks: `slow_shuffle_equals_the_fast_one` in distributed/worker.py.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.reference_step import ReferenceStep
from moco.builder import MoCo
from moco.data.loader import Batch
from moco.distributed.global_batch import GlobalBatch
from moco.losses import LossOutput, WeightedLoss
from moco.losses.logsumexp import whole_logsumexp
from moco.pretrain.reference import ReferenceMoCo
from moco.pretrain.step import TrainingStep

CLOSE = dict(rtol=1e-4, atol=1e-5)  # fp32 sums in another order, through a few steps
DIM, K, N = 4, 15, 5
Loss = Callable[..., LossOutput]


def unchunked(loss: WeightedLoss) -> WeightedLoss:
    return dataclasses.replace(loss, logsumexp=whole_logsumexp)


def augment(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    return (crops.permute(0, 3, 1, 2).float() / 128 - 1) * torch.cos(index + 2 * view).view(-1, 1, 1, 1)


def net() -> nn.Module:
    torch.manual_seed(11)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, DIM))


def batch(step: int, n: int = N) -> Batch:
    generator = torch.Generator().manual_seed(100 + step)
    crops = torch.randint(0, 256, (n, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Batch(crops, torch.arange(n) + 10 * step, torch.arange(n) % 3)


def training_step(model: type[MoCo], loss: Loss, bn: str, m: float) -> TrainingStep:
    moco = model(net(), dim=DIM, K=K, m=m, bn=bn, bn_group_size=2)
    optimizer = torch.optim.SGD(moco.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    return TrainingStep(moco, loss, optimizer, augment, GlobalBatch())


def state(step: TrainingStep) -> dict[str, Tensor]:
    return {**step.moco.state_dict(), "labels": step.moco.queue_labels, "filled": step.moco.filled}


@pytest.mark.parametrize("bn", ["split", "local"])
@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 3.0, 1.0)])
def test_the_trainers_slow_paths_equal_its_fast_ones(bn: str, weights: tuple[float, float, float]) -> None:
    loss = WeightedLoss(weights[0], 0.2, weights[1], 2.0, weights[2], 3.0)
    # with m = ½ both forms of the first momentum update are exact
    fast, slow = (training_step(*kind, bn, 0.5) for kind in ((MoCo, loss), (ReferenceMoCo, unchunked(loss))))
    start = copy.deepcopy(state(fast))
    for number, n in enumerate((5, 5, 4, 7, 5)):
        expected, _ = slow(batch(number, n), 0, [n])
        values, _ = fast(batch(number, n), 0, [n])
        torch.testing.assert_close(values, expected, **CLOSE)
        if number == 0:
            # nothing but the way was different so far: one encoder, one permutation, one queue
            assert fast.moco.queue.equal(slow.moco.queue)
    torch.testing.assert_close(state(fast), state(slow), **CLOSE)
    assert not any(torch.allclose(value.float(), start[name].float()) for name, value in state(fast).items())


def test_a_queue_for_each_view() -> None:
    fast, slow = (model(net(), dim=DIM, K=K, bn="local", queue_per_view=True) for model in (MoCo, ReferenceMoCo))
    for number in range(3):
        keys = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(number))
        for model in (fast, slow):
            model.enqueue(keys[1], None, keys[0])
        assert all(fast.queue_for(view).equal(slow.queue_for(view)) for view in (0, 1))
    assert not fast.queue_for(0).equal(fast.queue_for(1)) and fast.queue_ptr.equal(slow.queue_ptr)


def test_momentum_update() -> None:
    """One rounding apart, for any momentum."""
    for m in (0.0, 0.5, 0.999, 1.0):
        fast, slow = (model(net(), dim=DIM, K=K, m=m, bn="local") for model in (MoCo, ReferenceMoCo))
        for model in (fast, slow):
            generator = torch.Generator().manual_seed(1)
            for p in model.encoder_q.parameters():
                p.data.add_(torch.randn(p.shape, generator=generator))
            model.update_key_encoder()
        for a, b in zip(fast.encoder_k.parameters(), slow.encoder_k.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert fast.step == slow.step == 1


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.5, 3.0, 1.0)])
def test_is_the_algorithm_in_plain_pytorch(weights: tuple[float, float, float]) -> None:
    """Of BatchNorm it has one group, so the order in it does not matter."""
    ours = training_step(MoCo, WeightedLoss(weights[0], 0.2, weights[1], 2.0, weights[2], 3.0), "local", 0.9)
    plain = ReferenceStep(net(), DIM, K, m=0.9, T=0.2, weights=weights, lr=0.1)
    plain.queue = ours.moco.queue.clone()
    for number in range(5):
        data = batch(number)
        views = [augment(data.crops[:, view], data.index, 0, view) for view in (0, 1)]
        values, _ = ours(data, 0, [N])
        assert values["loss"].item() == pytest.approx(plain(*views), rel=1e-4)
    torch.testing.assert_close(ours.moco.queue, plain.queue, rtol=1e-3, atol=1e-4)
    for mine, theirs in ((ours.moco.encoder_q, plain.f_q), (ours.moco.encoder_k, plain.f_k)):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=1e-3, atol=1e-4)
