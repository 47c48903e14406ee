"""The pair and its queue: the moving average in closed form, the queue against a deque, keys that no gradient
reaches."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from moco.builder import MoCo
from moco.distributed import shares
from moco.encoders import build_encoder
from moco.errors import InputError

DIM = 4


class Recorder(nn.Module):
    """A linear encoder without BatchNorm that remembers the images it was given."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.fc = nn.Linear(width, DIM)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.fc(x)


def model(K: int = 8, m: float = 0.9, bn: str = "local", seed: int = 0, **arguments: Any) -> MoCo:
    torch.manual_seed(7)
    return MoCo(Recorder(), dim=DIM, K=K, m=m, bn=bn, seed=seed, **arguments)


def keys(n: int, start: int = 0) -> Tensor:
    """Unit rows, no two alike."""
    return F.normalize(torch.randn(n, DIM, generator=torch.Generator().manual_seed(1000 + start)), dim=1)


# -- at the start ------------------------------------------------------------------------------------------------------


def test_state_has_the_keys_of_facebookresearch_moco() -> None:
    for mlp in (False, True):
        encoder = build_encoder("resnet18", 16, mlp=mlp)
        names = list(encoder.state_dict())
        state = MoCo(encoder, dim=16, K=32).state_dict()
        assert set(state) == {f"encoder_{e}.{name}" for e in "qk" for name in names} | {"queue", "queue_ptr"}
        assert state["queue"].shape == (16, 32) and state["queue"].dtype == torch.float32
        assert state["queue_ptr"].shape == (1,) and state["queue_ptr"].dtype == torch.int64
        for name in names:
            assert state[f"encoder_k.{name}"].equal(state[f"encoder_q.{name}"])


def test_the_queue_starts_with_random_unit_columns_of_the_seed() -> None:
    a, b, c = model(K=50, seed=1), model(K=50, seed=1), model(K=50, seed=2)
    torch.testing.assert_close(a.queue.norm(dim=0), torch.ones(50))
    assert a.queue.equal(b.queue) and not a.queue.equal(c.queue)
    assert a.queue_labels.equal(torch.full((50,), -1)) and a.filled.item() == 0
    # random directions: neither aligned with each other nor with an axis
    assert a.queue.mean(1).norm() < 0.5


@pytest.mark.parametrize(
    ("K", "m", "told"),
    [
        (-3, 0.9, "--moco-k must be at least 1, or 0 for no queue, not -3"),
        (4, 1.1, "--moco-m must be between 0 and 1, not 1.1"),
        (4, -0.1, "between 0 and 1"),
        (4, float("nan"), "between 0 and 1"),
    ],
)
def test_bad_settings(K: int, m: float, told: str) -> None:
    with pytest.raises(InputError, match=told):
        model(K=K, m=m)


def test_split_is_the_default_of_one_process() -> None:
    torch.manual_seed(0)
    assert MoCo(build_encoder("smallcnn", DIM), dim=DIM, K=4).bn == "split"


# -- the key encoder ---------------------------------------------------------------------------------------------------


def test_the_moving_average_follows_parameters_that_move() -> None:
    """Their list is kept; their memory, type and format may change."""
    moco = model(m=0.5)
    moco.update_key_encoder()
    moco.double()
    moco.load_state_dict({name: value + 1 for name, value in moco.state_dict().items()})
    with torch.no_grad():
        for parameter in moco.encoder_q.parameters():
            parameter.add_(2)
    before = [parameter.clone() for parameter in moco.encoder_k.parameters()]
    copied = copy.deepcopy(moco)
    for one in (moco, copied):
        one.update_key_encoder()
        for key, query, was in zip(one.encoder_k.parameters(), one.encoder_q.parameters(), before, strict=True):
            torch.testing.assert_close(key, (was + query) / 2)


@given(m=st.sampled_from([0.0, 0.5, 0.99, 1.0]), updates=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_moving_average_in_closed_form(m: float, updates: int, seed: int) -> None:
    """k_n = m^n·k_0 + (1 - m)·Σ_i m^{n-i}·q_i over a query encoder that changes from step to step."""
    moco = model(m=m).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in moco.encoder_k.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    start = [p.clone() for p in moco.encoder_k.parameters()]
    history = []
    for _ in range(updates):
        with torch.no_grad():
            for parameter in moco.encoder_q.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        history.append([p.detach().clone() for p in moco.encoder_q.parameters()])
        moco.update_key_encoder()
    for i, (parameter, first) in enumerate(zip(moco.encoder_k.parameters(), start, strict=True)):
        queries = (m ** (updates - 1 - j) * history[j][i] for j in range(updates))
        expected = m**updates * first + (1 - m) * sum(queries, torch.zeros_like(first))
        torch.testing.assert_close(parameter.data, expected, rtol=1e-12, atol=1e-12)
    assert all(p.detach().equal(q) for p, q in zip(moco.encoder_q.parameters(), history[-1], strict=True))
    assert moco.step == updates


def test_statistics_of_batchnorm_are_not_averaged() -> None:
    """As in MoCo: each encoder keeps those of the batches it saw."""
    moco = MoCo(build_encoder("smallcnn", DIM), dim=DIM, K=4, m=0.5)
    with torch.no_grad():
        for buffer in moco.encoder_q.buffers():
            buffer.add_(1)
    before = [b.clone() for b in moco.encoder_k.buffers()]
    moco.update_key_encoder()
    assert all(a.equal(b) for a, b in zip(moco.encoder_k.buffers(), before, strict=True))


def test_no_gradient_reaches_the_key_encoder() -> None:
    moco = model()
    x = torch.randn(5, 6)
    q, k = moco(x, x)
    assert q.requires_grad and not k.requires_grad
    assert not any(p.requires_grad for p in moco.encoder_k.parameters())
    ((q * k).sum() + (q @ moco.queue).sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moco.encoder_q.parameters())
    assert all(p.grad is None for p in moco.encoder_k.parameters()) and moco.queue.grad is None


def test_features_are_unit_fp32() -> None:
    for amp in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            q, k = model()(torch.randn(5, 6), torch.randn(5, 6))
        for x in (q, k):
            assert x.dtype == torch.float32
            torch.testing.assert_close(x.norm(dim=1), torch.ones(5))


# -- keys in other company ---------------------------------------------------------------------------------------------


def groups_of(order: Tensor, groups: int) -> Tensor:
    """For each sample, the group of `SplitBatchNorm` it is in when samples come in `order`."""
    where = torch.empty_like(order)
    where[order] = torch.arange(groups).repeat_interleave(torch.tensor(shares(len(order), groups)))
    return where


@pytest.mark.parametrize("n", [16, 21])
def test_split_permutes_the_keys_over_the_groups(n: int) -> None:
    """Else query i and key i would be normalised with the same company, which gives the positive away. The features
    come
    back in the order of the images all the same."""
    moco = model(bn="split", bn_group_size=4)
    moco.update_key_encoder()
    images = torch.arange(float(n))[:, None].repeat(1, 6)
    q, k = moco(images, images)
    order = moco.encoder_k.seen[-1][:, 0].long()
    assert moco.encoder_q.seen[-1].equal(images)
    assert sorted(order.tolist()) == list(range(n))
    torch.testing.assert_close(k, q)  # both encoders are the same still

    groups = n // 4
    of_queries, of_keys = groups_of(torch.arange(n), groups), groups_of(order, groups)
    together = (of_queries[:, None] == of_queries) & (of_keys[:, None] == of_keys)
    pairs = int(together.sum()) - n
    possible = int((of_queries[:, None] == of_queries).sum()) - n
    assert pairs <= possible / 2, "the company of a query is still with its key"


def test_the_permutation_is_new_in_every_step_and_of_the_seed() -> None:
    images = torch.arange(16.0)[:, None].repeat(1, 6)

    def orders(seed: int) -> list[list[int]]:
        moco = model(bn="split", bn_group_size=4, seed=seed)
        for _ in range(4):
            moco.update_key_encoder()
            moco(images, images)
        return [seen[:, 0].long().tolist() for seen in moco.encoder_k.seen]

    first = orders(0)
    assert len({tuple(order) for order in first}) == 4
    assert first == orders(0)
    assert all(a != b for a, b in zip(first, orders(1), strict=True))
    assert list(range(16)) not in first


@pytest.mark.parametrize(("bn", "training"), [("local", True), ("split", False)])
def test_keys_stay_in_order_where_nothing_is_hidden(bn: str, training: bool) -> None:
    moco = model(bn=bn).train(training)
    images = torch.randn(8, 6)
    moco(images, images)
    assert moco.encoder_k.seen[-1].equal(images)


def test_keys_may_be_prepared_after_the_shuffle() -> None:
    """`im_k` as a tuple: crops and their indices travel together, and the key encoder sees what `prepare_k` made."""
    moco = model(bn="split", bn_group_size=2)
    images = torch.randn(10, 6)
    index = torch.arange(10)
    seen: list[Tensor] = []

    def prepare(crops: Tensor, which: Tensor) -> Tensor:
        seen.append(which)
        assert crops.equal(images[which])
        return 3 * crops - which[:, None]

    _, k = moco(images, (images, index), prepare)
    expected = F.normalize(moco.encoder_k(3 * images - index[:, None]), dim=1)
    torch.testing.assert_close(k, expected)
    assert not seen[0].equal(index)


def test_leak_through_batch_statistics_is_closed() -> None:
    """The worst data: every virtual group of the batch has an offset of its own, far larger than what tells its images
    apart. Normalised in the same company, a query and its key lose the same offset and match whatever the encoder does;
    with the keys in other company they do not."""
    n, size = 32, 8
    groups = n // size
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.BatchNorm1d(DIM, affine=False), nn.Linear(DIM, DIM, bias=False))
    offset = 100 * torch.randn(groups, DIM)
    noise = torch.randn(n, DIM)
    images = noise + offset[torch.arange(n) // size]
    moco = MoCo(encoder, dim=DIM, K=4, bn="split", bn_group_size=size)
    moco.update_key_encoder()
    q, k = moco(images, images)
    leaky = MoCo(encoder, dim=DIM, K=4, bn="local")
    leaky.encoder_q = leaky.encoder_k = moco.encoder_q  # split groups without the permutation
    _, leaking = leaky(images, images)
    torch.testing.assert_close(q, leaking)  # the same image in the same company: the same feature
    assert (q * k).sum(1).abs().mean() < 0.9


# -- the queue ---------------------------------------------------------------------------------------------------------


@given(
    K=st.integers(1, 9),
    batches=st.lists(st.tuples(st.integers(1, 25), st.booleans()), min_size=1, max_size=12),
)
@settings(max_examples=80)
def test_first_in_first_out(K: int, batches: list[tuple[int, bool]]) -> None:
    """Against a deque of K (key, label): after wrap-around, with batches that do not divide K and batches larger
    than K.
    From `queue_ptr` on, the queue holds the deque from its oldest entry to its newest."""
    moco = model(K=K)
    oracle = deque([(moco.queue[:, j].clone(), -1) for j in range(K)], maxlen=K)
    total = 0
    for number, (n, labelled) in enumerate(batches):
        new = keys(n, number)
        labels = torch.arange(total, total + n) if labelled else None
        moco.enqueue(new, labels)
        oracle.extend((row, int(labels[i]) if labels is not None else -1) for i, row in enumerate(new))
        total += n
        pointer = int(moco.queue_ptr)
        assert pointer == total % K
        order = [(pointer + j) % K for j in range(K)]
        assert moco.queue[:, order].equal(torch.stack([key for key, _ in oracle], dim=1))
        assert moco.queue_labels[order].tolist() == [label for _, label in oracle]
        assert moco.filled.item() == min(total, K)


@given(
    K=st.integers(1, 9), before=st.integers(0, 12), n=st.integers(1, 20), bad=st.sampled_from(["nan", "inf", "-inf"])
)
@settings(max_examples=40)
def test_keys_that_are_not_finite_leave_the_queue_as_it_was(K: int, before: int, n: int, bad: str) -> None:
    moco = model(K=K)
    if before:
        moco.enqueue(keys(before), torch.arange(before))
    state = copy.deepcopy({**moco.state_dict(), **moco.queue_state()})
    poisoned = keys(n, 1)
    poisoned[-1, 0] = float(bad)  # the last stays also of a batch larger than K
    moco.enqueue(poisoned, torch.arange(n))
    now = {**moco.state_dict(), **moco.queue_state()}
    assert all(torch.equal(now[name], state[name]) for name in state if name != "step")
    moco.enqueue(keys(n, 2), torch.arange(n))
    assert moco.filled.item() == min(before + n, K) and moco.queue_ptr.item() == (before + n) % K


def test_halves_are_stored_in_the_queues_type() -> None:
    moco = model(K=4)
    moco.enqueue(keys(3).bfloat16())
    assert moco.queue.dtype == torch.float32 and moco.queue[:, :3].equal(keys(3).bfloat16().float().T)


def test_what_is_beside_the_state_dict_comes_back() -> None:
    moco = model(K=7)
    for number in range(3):
        moco.update_key_encoder()
        moco.enqueue(keys(3, number), torch.arange(3))
    other = model(K=7, seed=5)
    other.load_state_dict(copy.deepcopy(moco.state_dict()))
    other.load_queue_state(copy.deepcopy(moco.queue_state()))
    assert other.queue.equal(moco.queue) and other.queue_ptr.equal(moco.queue_ptr)
    assert other.queue_labels.equal(moco.queue_labels) and other.filled.equal(moco.filled) and other.step == 3


def test_shuffles_do_not_depend_on_what_else_was_random() -> None:
    """They are a function of (seed, step): a resumed run needs no replay."""
    a, b = model(bn="split", bn_group_size=2, seed=3), model(bn="split", bn_group_size=2, seed=3)
    torch.manual_seed(99)
    b.step = 4
    for _ in range(5):
        a.update_key_encoder()
    b.update_key_encoder()
    images = torch.arange(12.0)[:, None].repeat(1, 6)
    a(images, images), b(images, images)
    assert a.encoder_k.seen[-1].equal(b.encoder_k.seen[-1])
