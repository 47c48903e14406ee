"""A step whose gradient is not finite leaves no trace: weights, momentum, queue and statistics stay to the last bit."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from moco.builder import MoCo
from moco.data.loader import Batch
from moco.distributed.global_batch import GlobalBatch
from moco.losses import WeightedLoss
from moco.pretrain.optimiser import make_optimizer
from moco.pretrain.step import TrainingStep


def plain(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    return crops.permute(0, 3, 1, 2).float() / 255


def build(amp: str = "off", go_on: bool = True, optimizer: str = "sgd") -> TrainingStep:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 8))
    moco = MoCo(encoder, dim=8, K=16, m=0.9, bn="local")
    decay = 0.0 if optimizer == "sgd" else 1e-4
    settings = SimpleNamespace(optimizer=optimizer, lr=0.1, momentum=0.9, weight_decay=decay)
    made = make_optimizer(moco, [], settings)
    loss = WeightedLoss(contr_w=1.0, align_w=0.0, unif_w=0.0)
    return TrainingStep(moco, loss, made, plain, GlobalBatch(), amp=amp, go_on=go_on)  # type: ignore[arg-type]


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randint(0, 256, (4, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Batch(crops, torch.arange(4), torch.full((4,), -1))


def state(step: TrainingStep) -> dict[str, Tensor]:
    """Everything that goes on to the next step, except that the key encoder has followed and batches were counted."""
    momentum = {f"momentum {i}": s["momentum_buffer"] for i, s in step.optimizer.state_dict()["state"].items()}
    kept = {n: v for n, v in step.moco.state_dict().items() if "tracked" not in n and "encoder_k" not in n}
    running = {n: v for n, v in step.moco.state_dict().items() if "encoder_k" in n and "running" in n}
    return {name: value.clone() for name, value in {**kept, **running, **momentum}.items()}


def spoil(step: TrainingStep, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Makes the next steps bad: an image that is not finite, or only a gradient that overflows."""
    if what == "image":
        monkeypatch.setattr(
            step, "augment", lambda *arguments: plain(*arguments).index_fill(0, torch.tensor([1]), float("inf"))
        )
    else:
        weight = next(step.moco.encoder_q.parameters())
        handle = weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), float("nan")))
        monkeypatch.setattr(step, "unspoil", handle.remove, raising=False)


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("what", ["image", "gradient"])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_is_not_applied(monkeypatch: pytest.MonkeyPatch, amp: str, what: str, first: bool) -> None:
    step = build(amp)
    if not first:
        step(batch(0), 0, [4])
    assert step.guard.not_applied() == (0, 0)
    before = state(step)
    with monkeypatch.context() as patch:
        spoil(step, patch, what)
        step(batch(1), 0, [4])
        if what == "gradient":
            step.unspoil()  # type: ignore[attr-defined]
    after = state(step)
    # a batch whose features are finite has good keys and statistics, even if its gradient is not
    ours = [name for name in before if what == "image" or "queue" not in name]
    assert {name for name in ours if not torch.equal(before[name], after[name])} == set()
    assert step.guard.not_applied() == (1, step.moco.step)
    assert step.guard.not_applied() == (1, 0)
    step(batch(2), 0, [4])
    assert all(value.isfinite().all() for value in state(step).values())
    assert not torch.equal(state(step)["encoder_q.0.weight"], before["encoder_q.0.weight"])


def test_first_step_that_overflows_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Usual in fp16: the loss scale starts too high, and the first steps only lower it.

    torch's fused SGD allocates its momentum in such a step without writing to it, and adds what lay there in the next.
    """
    step = build("fp16")
    junk = [torch.full((8, 3, 3, 3), float("nan")) for _ in range(50)]
    del junk
    with monkeypatch.context() as patch:
        spoil(step, patch, "gradient")
        step(batch(0), 0, [4])
        step.unspoil()  # type: ignore[attr-defined]
    assert step.guard.not_applied() == (0, 0)  # that is no bad step
    assert step.guard.scaler.get_scale() == 65536 / 2
    buffers = [s["momentum_buffer"] for s in step.optimizer.state.values()]
    assert buffers and all(not buffer.any() for buffer in buffers)
    step(batch(1), 0, [4])
    assert all(value.isfinite().all() for value in state(step).values())


def test_momentum_from_zero_is_torchs_own() -> None:
    """Starting the momentum at zero must not change what SGD does."""
    ours, reference = build(), build()
    reference.optimizer.state.clear()
    for seed in range(3):
        ours(batch(seed), 0, [4])
        reference(batch(seed), 0, [4])
    for a, b in zip(ours.moco.parameters(), reference.moco.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_statistics_are_kept_only_where_training_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies cost time, and a run that stops at its first bad step does not need them."""
    step = build(go_on=False)
    spoil(step, monkeypatch, "image")
    step(batch(0), 0, [4])
    assert step.guard.not_applied() == (1, 1)
    assert not step.moco.state_dict()["encoder_q.1.running_mean"].isfinite().all()


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later step"])
def test_others_leave_a_bad_step_out(monkeypatch: pytest.MonkeyPatch, first: bool, optimizer: str, amp: str) -> None:
    """Its moments and its count of steps stay, too; and a good step moves the weights by Adam's learning rate."""
    step = build(amp, optimizer=optimizer)
    if amp == "fp16":
        step.guard.scaler.load_state_dict({**step.guard.scaler.state_dict(), "scale": 64.0})
    if not first:
        step(batch(0), 0, [4])
    before = {name: value.clone() for name, value in step.moco.encoder_q.state_dict().items() if "tracked" not in name}
    moments = copy.deepcopy(step.optimizer.state_dict()["state"])
    with monkeypatch.context() as patch:
        spoil(step, patch, "image")
        step(batch(1), 0, [4])
    assert all(step.moco.encoder_q.state_dict()[name].equal(value) for name, value in before.items())
    for i, state in step.optimizer.state_dict()["state"].items():
        expected = moments.get(i, {name: torch.zeros_like(value) for name, value in state.items()})
        assert all(state[name].equal(expected[name]) for name in state)
    step(batch(2), 0, [4])
    weight = step.moco.encoder_q.state_dict()["0.weight"]
    assert not weight.equal(before["0.weight"]) and weight.isfinite().all()
    # Adam's first step is the learning rate in every entry, beside the decay
    if first and optimizer == "adamw" and amp == "off":
        decayed = before["0.weight"] * (1 - 0.1 * 1e-4)
        torch.testing.assert_close((weight - decayed).abs(), torch.full_like(weight, 0.1), rtol=1e-3, atol=1e-4)
