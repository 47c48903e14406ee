"""The heads against loops over pairs (tests/oracles.py), closed forms and numerical gradients; and where they must
not break."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from moco.errors import InputError
from moco.losses import (
    PRESET_WEIGHTS,
    WeightedLoss,
    align_loss,
    contrastive_loss,
    uniform_loss,
)
from moco.losses.logsumexp import queue_logsumexp
from tests import oracles

EXACT = dict(rtol=1e-10, atol=1e-10)

sizes = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(2, 6))  # N, K, C
seeds = st.integers(0, 2**31 - 1)


def made_up(n: int, length: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Raw queries and keys [n, dim], with gradient, and a queue of unit columns [dim, length]."""
    generator = torch.Generator().manual_seed(seed)
    raw_q, raw_k, queue = (
        torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((n, dim), (n, dim), (dim, length))
    )
    return raw_q.requires_grad_(), raw_k.requires_grad_(), F.normalize(queue, dim=0)


def assert_same_value_and_gradients(
    ours: Callable[..., Tensor], formula: Callable[..., Tensor], n: int, length: int, dim: int, seed: int
) -> None:
    """Gradients are taken through the normalisation: off the sphere, two ways to write a distance differ."""
    raw_q, raw_k, queue = made_up(n, length, dim, seed)
    value = ours(F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1), queue)
    expected = formula(oracles.unit_rows(raw_q), oracles.unit_rows(raw_k), queue)
    torch.testing.assert_close(value, expected, **EXACT)
    gradients = torch.autograd.grad(value, (raw_q, raw_k), materialize_grads=True)
    expected_gradients = torch.autograd.grad(expected, (raw_q, raw_k), materialize_grads=True)
    torch.testing.assert_close(gradients, expected_gradients, **EXACT)


# -- the formulas ------------------------------------------------------------------------------------------------------


@given(shape=sizes, seed=seeds, temperature=st.sampled_from([0.07, 0.2, 0.5, 1.0, 5.0]))
@settings(max_examples=25)
def test_contrastive_is_the_formula(shape: tuple[int, int, int], seed: int, temperature: float) -> None:
    assert_same_value_and_gradients(
        lambda q, k, queue: contrastive_loss(q, k, queue, temperature),
        lambda q, k, queue: oracles.contrastive(q, k, queue, temperature),
        *shape, seed,
    )  # fmt: skip


@given(shape=sizes, seed=seeds, alpha=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
@settings(max_examples=20)
def test_align_is_the_formula(shape: tuple[int, int, int], seed: int, alpha: float) -> None:
    assert_same_value_and_gradients(
        lambda q, k, queue: align_loss(q, k, alpha), lambda q, k, queue: oracles.align(q, k, alpha), *shape, seed
    )


@given(shape=sizes, seed=seeds, t=st.sampled_from([0.5, 2.0, 3.0, 8.0]), intra_batch=st.booleans())
@settings(max_examples=30)
def test_uniform_is_the_formula(shape: tuple[int, int, int], seed: int, t: float, intra_batch: bool) -> None:
    """With pairs of the batch: one mean over N·K + N(N-1)/2 terms of equal weight, and gradients to both queries of
    a pair."""
    assert_same_value_and_gradients(
        lambda q, k, queue: uniform_loss(q, queue, t, intra_batch),
        lambda q, k, queue: oracles.uniform(q, queue, t, intra_batch),
        *shape, seed,
    )  # fmt: skip


weights = st.sampled_from([0.0, 0.25, 1.0, 3.0])


@given(w=st.tuples(weights, weights, weights).filter(any), seed=seeds, intra_batch=st.booleans())
@settings(max_examples=20)
def test_head_is_the_weighted_sum(w: tuple[float, float, float], seed: int, intra_batch: bool) -> None:
    loss = WeightedLoss(w[0], 0.3, w[1], 1.5, w[2], 2.5, intra_batch)

    def formula(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        parts = (
            oracles.contrastive(q, k, queue, 0.3),
            oracles.align(q, k, 1.5),
            oracles.uniform(q, queue, 2.5, intra_batch),
        )
        return sum(weight * part for weight, part in zip(w, parts, strict=True))

    assert_same_value_and_gradients(lambda q, k, queue: loss(q, k, queue).loss, formula, 4, 5, 3, seed)


def test_presets_are_those_of_the_papers() -> None:
    """InfoNCE is MoCo's loss; align-uniform is 3·align(α=2) + uniform(t=3) over queue and batch."""
    assert PRESET_WEIGHTS == {"infonce": (1.0, 0.0, 0.0), "align-uniform": (0.0, 3.0, 1.0)}
    raw_q, raw_k, queue = made_up(5, 7, 4)
    q, k = F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1)
    losses = {
        name: WeightedLoss(w[0], align_w=w[1], unif_w=w[2])(q, k, queue).loss for name, w in PRESET_WEIGHTS.items()
    }
    torch.testing.assert_close(losses["infonce"], oracles.contrastive(q, k, queue, 0.07), **EXACT)
    expected = 3 * oracles.align(q, k, 2) + oracles.uniform(q, queue, 3, True)
    torch.testing.assert_close(losses["align-uniform"], expected, **EXACT)
    torch.testing.assert_close(WeightedLoss()(q, k, queue).loss, losses["infonce"])


def test_parts_are_logged_unweighted_and_detached() -> None:
    raw_q, raw_k, queue = made_up(4, 6, 3)
    q, k = F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1)
    _, logs = WeightedLoss(0.5, 0.2, 3.0, 2.0, 2.0, 3.0)(q, k, queue)
    assert not any(value.requires_grad for value in logs.values())
    expected = {
        "loss_contrastive": contrastive_loss(q, k, queue, 0.2),
        "loss_align": align_loss(q, k),
        "loss_uniform": uniform_loss(q, queue),
    }
    assert logs.keys() == expected.keys()
    torch.testing.assert_close(logs, {name: value.detach() for name, value in expected.items()})


def test_a_term_of_weight_0_is_not_computed() -> None:
    """Else a NaN of an unused term would reach the loss, as 0 · NaN."""
    raw_q, raw_k, queue = made_up(4, 6, 3)
    loss, logs = WeightedLoss(0.0, align_w=1.0)(F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1), queue * math.nan)
    assert loss.isfinite() and logs.keys() == {"loss_align"}


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "term",
    [
        lambda q, k, queue: queue_logsumexp(q, queue, 3.0, 2),
        lambda q, k, queue: contrastive_loss(q, k, queue, 0.2),
        lambda q, k, queue: align_loss(q, k, 1.0),
        lambda q, k, queue: align_loss(q, k, 2.0),
        lambda q, k, queue: uniform_loss(q, queue, 2.0, True),
        lambda q, k, queue: uniform_loss(q, queue, 2.0, False),
    ],
    ids=["queue_logsumexp", "contrastive", "align1", "align2", "uniform", "uniform-queue-only"],
)
def test_gradcheck(term: Callable[..., Tensor]) -> None:
    raw_q, raw_k, queue = made_up(3, 5, 4)
    assert torch.autograd.gradcheck(
        lambda a, b: term(F.normalize(a, dim=1), F.normalize(b, dim=1), queue), (raw_q, raw_k)
    )


def test_the_queue_is_a_constant() -> None:
    raw_q, raw_k, queue = made_up(3, 5, 4)
    queue.requires_grad_()
    q, k = F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1)
    WeightedLoss(1.0, align_w=1.0, unif_w=1.0)(q, k, queue).loss.backward()
    assert queue.grad is None and raw_q.grad is not None


@pytest.mark.parametrize("alpha", [0.25, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_align_below_2_has_a_finite_gradient_at_equal_features(alpha: float, dtype: torch.dtype) -> None:
    """d‖x‖^α/dx = α‖x‖^{α-1} is infinite at 0 for α < 1 and has no direction at 1."""
    x = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), dim=1).to(dtype).requires_grad_()
    loss = WeightedLoss(0.0, align_w=1.0, align_alpha=alpha)(x, x.detach().clone(), torch.zeros(8, 1, dtype=dtype)).loss
    loss.backward()
    assert loss.isfinite() and x.grad is not None and x.grad.isfinite().all()


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("cosine", [1.0, 0.5, -1.0])
def test_contrastive_with_an_orthogonal_queue(temperature: float, cosine: float) -> None:
    """log(1 + K·e^{-cos/T}): every negative has similarity 0."""
    eye = torch.eye(8, dtype=torch.float64)
    q = eye[:3]
    k = cosine * q + math.sqrt(1 - cosine**2) * eye[3:6]
    loss = contrastive_loss(q, k, eye[:, 6:], temperature)
    assert loss.item() == pytest.approx(math.log1p(2 * math.exp(-cosine / temperature)), abs=1e-12)


@pytest.mark.parametrize(("n", "length"), [(1, 1), (1, 5), (4, 1), (6, 30)])
def test_collapsed_features(n: int, length: int) -> None:
    """All at one point: InfoNCE is log(K + 1) at any temperature, alignment and uniformity are 0, nothing has a
    gradient."""
    point = F.normalize(torch.arange(1.0, 5.0, dtype=torch.float64), dim=0)
    raw = point.repeat(n, 1).requires_grad_()
    q, k, queue = F.normalize(raw, dim=1), point.repeat(n, 1), point[:, None].repeat(1, length)
    for temperature in (0.07, 2.0):
        assert contrastive_loss(q, k, queue, temperature).item() == pytest.approx(math.log(length + 1), abs=1e-12)
    assert align_loss(q, k).item() == pytest.approx(0, abs=1e-14)
    total = contrastive_loss(q, k, queue, 0.07) + align_loss(q, k)
    for intra_batch in (True, False):
        value = uniform_loss(q, queue, 3.0, intra_batch)
        assert value.item() == pytest.approx(0, abs=1e-12)
        total = total + value
    total.backward()
    torch.testing.assert_close(raw.grad, torch.zeros_like(raw), atol=1e-12, rtol=0)


@pytest.mark.parametrize("t", [1.0, 2.0, 3.0])
def test_orthogonal_features(t: float) -> None:
    """All pairs at right angles, ‖a - b‖² = 2: alignment 2^{α/2}, uniformity -2t with and without pairs of the
    batch."""
    eye = torch.eye(12, dtype=torch.float64)
    q, k, queue = eye[:4], eye[4:8], eye[:, 8:]
    for alpha in (0.5, 1.0, 2.0, 4.0):
        assert align_loss(q, k, alpha).item() == pytest.approx(2 ** (alpha / 2), abs=1e-12)
    for intra_batch in (True, False):
        assert uniform_loss(q, queue, t, intra_batch).item() == pytest.approx(-2 * t, abs=1e-12)


def test_antipodal_features() -> None:
    """‖a - b‖² = 4 from each query to the queue; the two queries coincide: (4·e^{-4t} + 1·e⁰) / 5 with the batch's
    one pair."""
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert align_loss(q, -q, 3.0).item() == pytest.approx(8, abs=1e-12)
    queue = -q.T
    assert uniform_loss(q, queue, 2.0, False).item() == pytest.approx(-8, abs=1e-12)
    assert uniform_loss(q, queue, 2.0, True).item() == pytest.approx(math.log((4 * math.exp(-8) + 1) / 5), abs=1e-12)


def test_one_query_has_no_pairs() -> None:
    raw_q, _, queue = made_up(1, 5, 4)
    q = F.normalize(raw_q, dim=1)
    torch.testing.assert_close(uniform_loss(q, queue, 2.0, True), uniform_loss(q, queue, 2.0, False), rtol=0, atol=0)


@given(shape=sizes, seed=seeds)
@settings(max_examples=15)
def test_only_angles_matter_and_the_queue_has_no_order(shape: tuple[int, int, int], seed: int) -> None:
    raw_q, raw_k, queue = made_up(*shape, seed)
    q, k = F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1)
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(shape[2], shape[2], generator=generator, dtype=torch.float64))
    order, rows = torch.randperm(shape[1], generator=generator), torch.randperm(shape[0], generator=generator)
    loss = WeightedLoss(1.0, 0.2, 3.0, 1.0, 1.0, 2.0)
    before = loss(q, k, queue).loss
    torch.testing.assert_close(loss(q @ rotation, k @ rotation, rotation.T @ queue).loss, before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss(q[rows], k[rows], queue[:, order]).loss, before, **EXACT)


# -- the primitive -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 12, 100])
def test_chunks_change_nothing(length: int, chunk: int) -> None:
    """Also where the last chunk is partial, the queue is shorter than a chunk, and the maximum moves from chunk to
    chunk."""
    raw_q, _, queue = made_up(4, length, 3)
    q = F.normalize(raw_q, dim=1).detach().requires_grad_()
    cotangent = torch.arange(1.0, 5.0, dtype=torch.float64)
    for scale in (0.5, 14.3, -3.0):
        expected = (scale * q @ queue).logsumexp(dim=1)
        value = queue_logsumexp(q, queue, scale, chunk)
        torch.testing.assert_close(value, expected, **EXACT)
        torch.testing.assert_close(
            torch.autograd.grad(value @ cotangent, q), torch.autograd.grad(expected @ cotangent, q), **EXACT
        )


def test_nothing_of_the_size_of_the_queue_is_kept_for_backward() -> None:
    n, length, dim = 4, 500, 8
    raw_q, raw_k, queue = made_up(n, length, dim)
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        WeightedLoss(1.0, align_w=1.0, unif_w=1.0)(F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1), queue)
    assert kept and max(x.numel() for x in kept) < length


# -- precision ---------------------------------------------------------------------------------------------------------


ALL_TERMS = WeightedLoss(1.0, 0.07, 3.0, 2.0, 1.0, 3.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_computed_with_in_fp32(dtype: torch.dtype) -> None:
    """The value is that of the same numbers in fp32, to the bit; the gradient comes back in the features' own type."""
    raw_q, raw_k, queue = made_up(6, 40, 16, dtype=torch.float32)
    half = [F.normalize(x.detach(), dim=1).to(dtype) for x in (raw_q, raw_k)] + [queue.to(dtype)]
    half[0].requires_grad_()
    wide = [x.detach().float() for x in half]
    loss, logs = ALL_TERMS(*half)
    expected, _ = ALL_TERMS(*wide)
    assert loss.dtype == torch.float32 and loss.equal(expected)
    assert all(value.dtype == torch.float32 for value in logs.values())
    loss.backward()
    assert half[0].grad is not None and half[0].grad.dtype == dtype and half[0].grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("loss", [WeightedLoss(1.0, 0.005), WeightedLoss(0.0, align_w=3.0, unif_w=1.0, unif_t=100.0)])
def test_finite_where_exponentials_are_not(dtype: torch.dtype, loss: WeightedLoss) -> None:
    """e^{1/.005} overflows fp32 and e^{-400} underflows it; a log of a sum of them needs neither."""
    eye = torch.eye(4)
    for q, k, queue in (
        (eye, -eye, eye),  # the worst: the key is opposite, the query itself is in the queue
        (eye, eye, -eye),
        (eye, eye, eye),
    ):
        q_leaf = q.to(dtype).requires_grad_()
        value = loss(q_leaf, k.to(dtype), queue.to(dtype)).loss
        value.backward()
        assert value.isfinite() and q_leaf.grad is not None and q_leaf.grad.isfinite().all()
    worst = contrastive_loss(eye[:1], -eye[:1], eye[:, :1], 0.005)
    assert worst.item() == pytest.approx(400, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_off_inside(dtype: torch.dtype) -> None:
    raw_q, raw_k, queue = made_up(6, 40, 16, dtype=torch.float32)
    q, k = F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1)
    expected = torch.autograd.grad(ALL_TERMS(q, k, queue).loss, raw_q, retain_graph=True)[0]
    with torch.autocast("cpu", dtype):
        loss = ALL_TERMS(q, k, queue).loss
    assert loss.equal(ALL_TERMS(q, k, queue).loss)
    assert torch.autograd.grad(loss, raw_q)[0].equal(expected)


def test_double_precision_stays_double() -> None:
    raw_q, raw_k, queue = made_up(3, 4, 5)
    assert ALL_TERMS(F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1), queue).loss.dtype == torch.float64


# -- bad settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -0.07, math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "told"), [("temperature", "--moco-t"), ("align_alpha", "--moco-align-alpha"), ("unif_t", "--moco-unif-t")]
)
def test_exponents_must_be_positive(name: str, told: str, bad: float) -> None:
    settings: dict[str, Any] = {name: bad}
    with pytest.raises(InputError, match=rf"\({told}\) must be a positive number"):
        WeightedLoss(**settings)


@pytest.mark.parametrize(
    "w", [(0.0, 0.0, 0.0), (-1.0, 1.0, 1.0), (1.0, -0.5, 0.0), (0.0, 1.0, math.nan), (math.inf, 0.0, 0.0)]
)
def test_weights_must_make_a_loss(w: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="--moco-contr-w"):
        WeightedLoss(w[0], align_w=w[1], unif_w=w[2])
