"""One training step against MoCo's Algorithm 1 written out; what accumulation, mixed precision and bad numbers must
not
change; and that nothing in it waits for the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from moco import metrics
from moco.builder import MoCo
from moco.data.loader import Batch
from moco.distributed.global_batch import GlobalBatch
from moco.losses import LossOutput, WeightedLoss
from moco.losses.in_batch import InBatchLoss
from moco.losses.table import LOSSES, make_loss
from moco.pretrain.optimiser import OPTIMIZERS, make_optimizer
from moco.pretrain.options import parse_pretrain
from moco.pretrain.step import TrainingStep
from tests import oracles

DIM, K, M, LR, MOMENTUM, DECAY, T = 4, 7, 0.6, 0.5, 0.9, 1e-2, 0.2


class Net(nn.Module):
    """Without BatchNorm, so that samples do not see each other."""

    def __init__(self, batchnorm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.bn = nn.BatchNorm2d(4) if batchnorm else nn.Identity()
        self.fc = nn.Linear(4 * 9, DIM)
        self.layouts: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.fc(torch.tanh(self.bn(self.conv(x))).flatten(1))


def augment(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    x = crops.permute(0, 3, 1, 2).float() / 128 - 1
    return x * torch.cos(index + epoch + 2 * view).view(-1, 1, 1, 1)


def training_step(
    loss: Any = None, batchnorm: bool = False, lr: float = LR, queue_per_view: bool = False, **arguments: Any
) -> TrainingStep:
    torch.manual_seed(11)
    model = MoCo(Net(batchnorm), dim=DIM, K=K, m=M, bn="local", queue_per_view=queue_per_view)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    step = TrainingStep(model, loss or WeightedLoss(1.0, T), optimizer, augment, GlobalBatch(), **arguments)
    set_scale(step, 64.0)  # the scaler's own start, 65536, is too much for this net: its first steps only lower it
    return step


def set_scale(step: TrainingStep, scale: float) -> None:
    if step.guard.scaler.is_enabled():
        step.guard.scaler.load_state_dict({**step.guard.scaler.state_dict(), "scale": scale})


def batch(step: int, n: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(100 + step)
    crops = torch.randint(0, 256, (n, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return Batch(crops, torch.arange(n) + 10 * step, torch.arange(n) % 3)


def state(step: TrainingStep) -> dict[str, Tensor]:
    return {**step.moco.state_dict(), "labels": step.moco.queue_labels, "filled": step.moco.filled}


# -- the algorithm -----------------------------------------------------------------------------------------------------


def test_is_algorithm_1_of_moco() -> None:
    """Momentum update, keys, loss over the queue without these keys, SGD, enqueue: here with nothing but torch."""
    step = training_step()
    net_q = copy.deepcopy(step.moco.encoder_q)
    net_k = copy.deepcopy(step.moco.encoder_k)
    queue, labels = step.moco.queue.clone(), [-1] * K
    velocity = [torch.zeros_like(p) for p in net_q.parameters()]
    pointer = 0
    for number, n in enumerate((5, 4, 9, 5)):
        data = batch(number, n)
        values, _ = step(data, 3, [n])

        for p_k, p_q in zip(net_k.parameters(), net_q.parameters(), strict=True):
            p_k.data = M * p_k.data + (1 - M) * p_q.data
        q = oracles.unit_rows(net_q(augment(data.crops[:, 0], data.index, 3, 0)))
        k = oracles.unit_rows(net_k(augment(data.crops[:, 1], data.index, 3, 1)).detach())
        loss = oracles.contrastive(q, k, queue, T)
        gradients = torch.autograd.grad(loss, list(net_q.parameters()))
        for p, v, g in zip(net_q.parameters(), velocity, gradients, strict=True):
            v.mul_(MOMENTUM).add_(g + DECAY * p.data)
            p.data -= LR * v
        for row, label in zip(k, data.labels.tolist(), strict=True):
            queue[:, pointer], labels[pointer] = row, label
            pointer = (pointer + 1) % K

        torch.testing.assert_close(values["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(step.moco.queue, queue, rtol=1e-4, atol=1e-5)
    assert step.moco.queue_labels.tolist() == labels and int(step.moco.queue_ptr) == pointer
    for ours, theirs in ((step.moco.encoder_q, net_q), (step.moco.encoder_k, net_k)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)


def test_symmetric_is_the_mean_of_both_directions() -> None:
    """Each view once as queries and once as keys; then view 1's keys are enqueued, and after them view 0's."""
    step = training_step(symmetric=True, lr=0.0)
    step.optimizer.param_groups[0]["weight_decay"] = 0
    for number in range(2):
        data, queue, pointer = batch(number, 3), step.moco.queue.clone(), int(step.moco.queue_ptr)
        values, measured = step(data, 3, [3], measure=True)
        images = [augment(data.crops[:, view], data.index, 3, view) for view in (0, 1)]
        q = [oracles.unit_rows(step.moco.encoder_q(x)) for x in images]
        k = [oracles.unit_rows(step.moco.encoder_k(x)).detach() for x in images]
        loss = (oracles.contrastive(q[0], k[1], queue, T) + oracles.contrastive(q[1], k[0], queue, T)) / 2
        torch.testing.assert_close(values["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(values["loss_contrastive"], values["loss"])
        wanted = torch.autograd.grad(loss, list(step.moco.encoder_q.parameters()))
        found = [p.grad for p in step.moco.encoder_q.parameters()]
        torch.testing.assert_close(found, list(wanted), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(measured["alignment"], metrics.alignment(q[0], k[1]))
        places = [(pointer + i) % K for i in range(6)]
        torch.testing.assert_close(step.moco.queue[:, places], torch.cat([k[1], k[0]]).T)
        assert step.moco.queue_labels[places].tolist() == [0, 1, 2] * 2


def test_a_queue_for_each_view() -> None:
    """solo-learn's MoCo v2+: a query is compared with past keys of its own key's view; each view has its queue."""
    step = training_step(symmetric=True, queue_per_view=True, lr=0.0)
    step.optimizer.param_groups[0]["weight_decay"] = 0
    assert not step.moco.queue_for(0).equal(step.moco.queue_for(1))
    for number in range(3):
        data, pointer = batch(number, 3), int(step.moco.queue_ptr)
        queues = [step.moco.queue_for(view).clone() for view in (0, 1)]
        values, measured = step(data, 3, [3], measure=True)
        images = [augment(data.crops[:, view], data.index, 3, view) for view in (0, 1)]
        q = [oracles.unit_rows(step.moco.encoder_q(x)) for x in images]
        k = [oracles.unit_rows(step.moco.encoder_k(x)).detach() for x in images]
        loss = (oracles.contrastive(q[0], k[1], queues[1], T) + oracles.contrastive(q[1], k[0], queues[0], T)) / 2
        torch.testing.assert_close(values["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(measured["acc1"], metrics.contrastive_accuracy(q[0], k[1], queues[1])["acc1"])
        places = [(pointer + i) % K for i in range(3)]
        for view in (0, 1):
            torch.testing.assert_close(step.moco.queue_for(view)[:, places], k[view].T)
        assert step.moco.queue_labels[places].tolist() == [0, 1, 2] and int(step.moco.queue_ptr) == (pointer + 3) % K
    assert int(step.moco.filled) == K


def test_a_batch_that_is_not_finite_leaves_both_queues() -> None:
    """Their pointer and labels are one: a view's good keys must not be queued without the other's."""
    model = MoCo(Net(), dim=DIM, K=K, m=M, bn="local", queue_per_view=True)
    before = [model.queue_for(view).clone() for view in (0, 1)]
    good, bad = torch.ones(2, DIM), torch.full((2, DIM), float("nan"))
    for keys in ((good, bad), (bad, good)):
        model.enqueue(keys[0], None, keys[1])
    assert all(model.queue_for(view).equal(before[view]) for view in (0, 1)) and int(model.queue_ptr) == 0


def test_without_a_queue_both_views_are_queries() -> None:
    """SimCLR's loss, with gradients through both views; the key encoder follows, and sees no image."""
    torch.manual_seed(11)
    model = MoCo(Net(), dim=DIM, K=0, m=M)
    optimizer = torch.optim.SGD(model.parameters(), LR, fused=True)
    step = TrainingStep(model, InBatchLoss(1.0, T), optimizer, augment, GlobalBatch())
    for number in range(2):
        data, before = batch(number, 4), copy.deepcopy(model.encoder_q)
        values, measured = step(data, 3, [4], measure=True)
        q, k = (oracles.unit_rows(before(augment(data.crops[:, view], data.index, 3, view))) for view in (0, 1))
        loss = oracles.nt_xent(q, k, T)
        torch.testing.assert_close(values["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
        wanted = torch.autograd.grad(loss, list(before.parameters()))
        for p, old, gradient in zip(model.encoder_q.parameters(), before.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.detach(), old.detach() - LR * gradient, rtol=1e-4, atol=1e-6)
        assert measured.keys() == {"alignment", "uniformity"}  # nothing to tell the key from
        torch.testing.assert_close(measured["uniformity"], metrics.uniformity(q))
    assert model.encoder_k.layouts == [] and model.queue.shape == (DIM, 0) and int(model.queue_ptr) == 0
    assert not all(a.equal(b) for a, b in zip(model.encoder_k.parameters(), Net().parameters(), strict=True))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_loss_trains_and_waits_for_nothing(loss: str, symmetric: bool) -> None:
    """Every number stays finite, with the batch in parts and each direction by itself."""
    loss = make_loss(parse_pretrain(["folder", "--loss", loss]))
    step = training_step(loss, symmetric=symmetric, lr=0.02, accum_steps=2)
    losses = [step(batch(0), 0, [5])[0]["loss"] for _ in range(2)]
    with NothingWaits():
        losses += [step(batch(0), 0, [5])[0]["loss"] for _ in range(12)]
    assert step.guard.not_applied() == (0, 0) and all(value.isfinite() for value in losses)
    assert all(value.isfinite().all() for value in state(step).values())


@pytest.mark.parametrize(("parts", "symmetric"), [(2, False), (3, False), (7, False), (3, True)])
def test_accumulation_equals_the_whole_batch(parts: int, symmetric: bool) -> None:
    """Also where the parts are uneven; the key encoder moves once a step, and the queue stands still until its end."""
    loss = WeightedLoss(0.5, T, 2.0, 1.5)
    whole = training_step(loss, symmetric=symmetric)
    split = training_step(loss, accum_steps=parts, symmetric=symmetric)
    start = copy.deepcopy(state(whole))
    for number in range(3):
        expected, measured = whole(batch(number, 8), 0, [8], measure=True)
        values, also_measured = split(batch(number, 8), 0, [8], measure=True)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(also_measured, measured, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state(split), state(whole), rtol=1e-4, atol=1e-5)
    assert split.moco.step == whole.moco.step == 3
    assert not any(torch.allclose(value.float(), start[name].float()) for name, value in state(whole).items())


def test_measures_before_the_queue_holds_these_keys() -> None:
    step = training_step(lr=0.0)
    step(batch(0), 0, [5])
    queue = step.moco.queue.clone()
    _, measured = step(batch(1), 0, [5], measure=True)
    data = batch(1)
    with torch.no_grad():
        q, k = step.moco(augment(data.crops[:, 0], data.index, 0, 0), augment(data.crops[:, 1], data.index, 0, 1))
    expected = {**metrics.contrastive_accuracy(q, k, queue), "alignment": metrics.alignment(q, k)}
    torch.testing.assert_close(measured, {**expected, "uniformity": metrics.uniformity(q)})
    assert training_step()(batch(0), 0, [5])[1] == {}


@pytest.mark.parametrize("wanted", [True, False])
def test_images_come_in_the_memory_format_asked_for(wanted: bool) -> None:
    step = training_step(channels_last=wanted)
    step(batch(0), 0, [5])
    layouts = step.moco.encoder_q.layouts + step.moco.encoder_k.layouts
    assert layouts == [wanted] * 2


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_gradients_are_clipped_by_their_norm(amp: str) -> None:
    """The update of a first step without weight decay is lr · g · min(1, clip/‖g‖), with g as it is before the scaling
    for fp16."""
    moves = {}
    for clip in (None, 1e3, 0.01):
        step = training_step(grad_clip=clip, amp=amp)
        step.optimizer.param_groups[0]["weight_decay"] = 0
        before = [p.detach().clone() for p in step.moco.encoder_q.parameters()]
        step(batch(0), 0, [5])
        after = step.moco.encoder_q.parameters()
        moves[clip] = torch.cat([(a.detach() - b).flatten() for a, b in zip(after, before, strict=True)])
    torch.testing.assert_close(moves[1e3], moves[None])
    assert moves[0.01].norm().item() == pytest.approx(LR * 0.01, rel=1e-3) and moves[None].norm() > 0.1
    torch.testing.assert_close(F.cosine_similarity(moves[0.01], moves[None], dim=0), torch.tensor(1.0))


# -- mixed precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_stays_near_fp32(amp: str) -> None:
    full, mixed = training_step(lr=0.05), training_step(lr=0.05, amp=amp)
    for number in range(4):
        expected, _ = full(batch(number), 0, [5])
        values, _ = mixed(batch(number), 0, [5])
        torch.testing.assert_close(values["loss"], expected["loss"], rtol=0.03, atol=0.03)
    assert all(value.dtype == state(full)[name].dtype for name, value in state(mixed).items())
    torch.testing.assert_close(state(mixed), state(full), rtol=0.1, atol=0.1)
    assert not all(value.equal(state(full)[name]) for name, value in state(mixed).items())
    assert mixed.guard.scaler.is_enabled() == (amp == "fp16") and mixed.guard.not_applied() == (0, 0)


def test_a_gradient_beyond_fp16_only_lowers_the_scale() -> None:
    step = training_step(amp="fp16")
    set_scale(step, 2.0**40)
    before = copy.deepcopy(step.moco.encoder_q.state_dict())
    step(batch(0), 0, [5])
    assert all(value.equal(before[name]) for name, value in step.moco.encoder_q.state_dict().items())
    assert step.guard.not_applied() == (0, 0) and step.guard.scaler.get_scale() == 2.0**39


# -- bad numbers -------------------------------------------------------------------------------------------------------


class Sick(WeightedLoss):
    """NaN, or what it is told, in the `at`-th step."""

    at, value = 2, float("nan")
    calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> LossOutput:
        loss, logs = super().__call__(*arguments, **named)
        self.calls += 1
        return LossOutput(loss * self.value if self.calls == self.at else loss, logs)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_a_step_of_nan_is_not_applied(amp: str, grad_clip: float | None) -> None:
    step = training_step(Sick(1.0, T), amp=amp, grad_clip=grad_clip)
    for number in range(4):
        weights = copy.deepcopy(step.moco.encoder_q.state_dict())
        velocity = copy.deepcopy(step.optimizer.state_dict()["state"])
        step(batch(number), 0, [5])
        same = all(value.equal(weights[name]) for name, value in step.moco.encoder_q.state_dict().items())
        assert same == (number == 1)
        if number == 1:
            now = step.optimizer.state_dict()["state"]
            assert all(now[i]["momentum_buffer"].equal(v["momentum_buffer"]) for i, v in velocity.items())
        # said once, and remembered
        assert step.guard.not_applied() == (int(number >= 1), 2 if number == 1 else 0)
    assert all(value.isfinite().all() for value in state(step).values())


def test_two_bad_steps_in_a_row_are_counted_and_the_first_is_named() -> None:
    class Sicker(Sick):
        def __call__(self, *arguments: Any, **named: Any) -> LossOutput:
            self.at = self.calls + 1 if self.calls in (1, 2) else -1
            return super().__call__(*arguments, **named)

    step = training_step(Sicker(1.0, T))
    for number in range(5):
        step(batch(number), 0, [5])
    assert step.guard.not_applied() == (2, 2)
    assert step.guard.not_applied() == (2, 0)


@pytest.mark.parametrize("go_on", [True, False])
def test_statistics_of_a_bad_batch_are_dropped_where_training_goes_on(go_on: bool) -> None:
    """Images that are not finite make running means that never recover."""

    def poisoned(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
        images = augment(crops, index, epoch, view)
        return images * float("nan") if index.min() == 10 else images  # the second batch

    step = training_step(batchnorm=True, go_on=go_on)
    step.augment = poisoned
    for number in range(3):
        step(batch(number), 0, [5])
    means = [buffer for name, buffer in step.moco.named_buffers() if "running_" in name]
    assert len(means) == 4 and all(mean.isfinite().all() for mean in means) == go_on
    assert step.guard.not_applied() == (1, 2)
    assert step.moco.queue.isfinite().all() and int(step.moco.queue_ptr) == (5 + 5) % K
    # what was left by the good batches: the same as if the bad one had not been
    if go_on:
        alone = training_step(batchnorm=True)
        alone(batch(0), 0, [5])
        first = [buffer.clone() for name, buffer in alone.moco.named_buffers() if "running_mean" in name]
        alone.moco.update_key_encoder()
        alone(batch(2), 0, [5])
        for ours, theirs in zip(step.moco.encoder_q.buffers(), alone.moco.encoder_q.buffers(), strict=True):
            if ours.is_floating_point():
                torch.testing.assert_close(ours, theirs)
        assert not any(mean.equal(buffer) for mean, buffer in zip(first, means[::2], strict=True))


# -- speed -------------------------------------------------------------------------------------------------------------


class NothingWaits(TorchDispatchMode):
    """Fails on what would make the host wait for an accelerator: reading a number, or a shape that depends on
    numbers."""

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), named: Any = None) -> Any:
        assert function._schema.name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("bn", ["local", "split"])
def test_nothing_waits_for_the_device(amp: str, bn: str, optimizer: str) -> None:
    torch.manual_seed(0)
    loss = WeightedLoss(1.0, T, 1.0, 1.5, 1.0)
    model = MoCo(Net(batchnorm=True), dim=DIM, K=K, m=M, bn=bn, bn_group_size=2, queue_per_view=True)
    made = make_optimizer(model, [], parse_pretrain(["folder", "--optimizer", optimizer]))
    more: dict[str, Any] = {"amp": amp, "grad_clip": 1.0, "accum_steps": 2, "go_on": True, "symmetric": True}
    step = TrainingStep(model, loss, made, augment, GlobalBatch(), **more)
    step(batch(0), 0, [5])
    with NothingWaits():
        step(batch(1), 0, [5], measure=True)
        report = step.guard.report()
    with pytest.raises(AssertionError), NothingWaits():
        report[0].item()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("amp", "words"),
    [
        *((amp, "--moco-align-w 1 --moco-align-alpha 1.5 --moco-contr-w 1") for amp in ("off", "bf16", "fp16")),
        *(("bf16", f"--loss {loss} --symmetric") for loss in LOSSES),
        ("bf16", "--moco-k 0 --moco-contr-w 1"),
    ],
)
def test_nothing_waits_for_a_gpu(amp: str, words: str) -> None:
    torch.manual_seed(0)
    o = parse_pretrain(["folder", "--moco-k", str(K), "--moco-hard-alpha", "0.4", "--moco-t", str(T), *words.split()])
    bn = "split" if o.moco_k else "local"
    model = MoCo(Net(batchnorm=True), dim=DIM, K=o.moco_k, m=M, bn=bn, bn_group_size=2, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, fused=True)
    more: dict[str, Any] = {"amp": amp, "grad_clip": 1.0, "go_on": True, "symmetric": o.symmetric}
    step = TrainingStep(model, make_loss(o), optimizer, augment, GlobalBatch(), **more)
    batches = [Batch(*(x.cuda() for x in (b.crops, b.index, b.labels))) for b in map(batch, range(3))]
    step(batches[0], 0, [5], measure=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for data in batches[1:]:
            step(data, 0, [5], measure=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.guard.not_applied() == (0, 0)
