"""Every row of the loss table against loops over pairs (tests/oracles.py), closed forms and numerical gradients; what
the command line makes of it; and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor

from moco.distributed.global_batch import GlobalBatch
from moco.errors import InputError, flag
from moco.losses import WeightedLoss, contrastive_loss, hard as hardness, supcon, table
from moco.losses.debiased import DebiasedLoss, debiased_loss
from moco.losses.decoupled import (
    DecoupledLoss,
    InBatchDecoupledLoss,
    decoupled_loss,
    in_batch_decoupled_loss,
    positive_weights,
)
from moco.losses.hard import HardContrastiveLoss, SimpleLoss, hard_contrastive_loss, hard_count, simple_loss
from moco.losses.in_batch import InBatchLoss
from moco.losses.supcon import SupConLoss, supcon_loss
from moco.losses.table import make_loss
from moco.pretrain.options import PretrainOptions, parse_pretrain
from tests import oracles
from tests.losses.test_weighted import EXACT, assert_same_value_and_gradients, made_up, seeds, sizes

QUEUE_LABELS = [0, 1, -1, 2, 0, -1, 1, 1]


def labelled(n: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([1, 0, -1, 2, 1][:n]), torch.tensor(QUEUE_LABELS[:length])


def features(n: int, length: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    raw_q, raw_k, queue = made_up(n, length, dim, seed)
    return F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1), queue


# -- the formulas ------------------------------------------------------------------------------------------------------


@given(
    shape=sizes, seed=seeds, temperature=st.sampled_from([0.07, 0.3, 1.0]), share=st.sampled_from([0.01, 0.3, 0.5, 1.0])
)
@settings(max_examples=25)
def test_hard_contrastive_is_the_formula(
    shape: tuple[int, int, int], seed: int, temperature: float, share: float
) -> None:
    assert_same_value_and_gradients(
        lambda q, k, queue: hard_contrastive_loss(q, k, queue, temperature, share),
        lambda q, k, queue: oracles.hard_contrastive(q, k, queue, temperature, share),
        *shape, seed,
    )  # fmt: skip


@given(shape=sizes, seed=seeds, weight=st.sampled_from([0.5, 1.0, 3.0]), share=st.sampled_from([0.01, 0.4, 0.99, 1.0]))
@settings(max_examples=25)
def test_simple_is_the_formula(shape: tuple[int, int, int], seed: int, weight: float, share: float) -> None:
    assert_same_value_and_gradients(
        lambda q, k, queue: simple_loss(q, k, queue, weight, share),
        lambda q, k, queue: oracles.simple(q, k, queue, weight, share),
        *shape, seed,
    )  # fmt: skip


@given(
    shape=sizes,
    seed=seeds,
    temperature=st.sampled_from([0.07, 0.5, 1.0]),
    prior=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    beta=st.sampled_from([0.0, 0.5, 1.0, 2.5]),
)
@settings(max_examples=40)
def test_debiased_and_hcl_are_the_formula(
    shape: tuple[int, int, int], seed: int, temperature: float, prior: float, beta: float
) -> None:
    """On both sides of the lower bound."""
    assert_same_value_and_gradients(
        lambda q, k, queue: debiased_loss(q, k, queue, temperature, prior, beta),
        lambda q, k, queue: oracles.hcl(q, k, queue, temperature, prior, beta),
        *shape, seed,
    )  # fmt: skip


@given(shape=sizes, seed=seeds, temperature=st.sampled_from([0.07, 0.3, 1.0]))
@settings(max_examples=20)
def test_supcon_is_the_formula(shape: tuple[int, int, int], seed: int, temperature: float) -> None:
    labels, queue_labels = labelled(*shape[:2])
    assert_same_value_and_gradients(
        lambda q, k, queue: supcon_loss(q, k, queue, labels, queue_labels, temperature),
        lambda q, k, queue: oracles.supcon(q, k, queue, labels.tolist(), queue_labels.tolist(), temperature),
        *shape, seed,
    )  # fmt: skip


@given(
    shape=sizes,
    seed=seeds,
    temperature=st.sampled_from([0.07, 0.3, 1.0]),
    sigma=st.sampled_from([None, 0.2, 0.5, 2.0]),
)
@settings(max_examples=40)
def test_decoupled_is_the_formula(
    shape: tuple[int, int, int], seed: int, temperature: float, sigma: float | None
) -> None:
    assert_same_value_and_gradients(
        lambda q, k, queue: decoupled_loss(q, k, queue, temperature, sigma),
        lambda q, k, queue: oracles.decoupled(q, k, queue, temperature, sigma),
        *shape, seed,
    )  # fmt: skip
    if shape[0] > 1:
        assert_same_value_and_gradients(
            lambda q, k, queue: in_batch_decoupled_loss(q, k, temperature, sigma),
            lambda q, k, queue: oracles.in_batch_decoupled(q, k, temperature, sigma),
            *shape, seed,
        )  # fmt: skip


HEADS_AS_CALLED: dict[str, Callable[..., Tensor]] = {
    "infonce": lambda q, k, queue, y, z: oracles.contrastive(q, k, queue, 0.07),
    "align-uniform": lambda q, k, queue, y, z: 3 * oracles.align(q, k, 2) + oracles.uniform(q, queue, 3, True),
    "simple": lambda q, k, queue, y, z: oracles.simple(q, k, queue, 1, 1),
    "hard": lambda q, k, queue, y, z: oracles.hard_contrastive(q, k, queue, 0.07, 0.0819),
    "hard-simple": lambda q, k, queue, y, z: oracles.simple(q, k, queue, 1, 0.0819),
    "debiased": lambda q, k, queue, y, z: oracles.hcl(q, k, queue, 0.5, 0.1, 0),
    "hcl": lambda q, k, queue, y, z: oracles.hcl(q, k, queue, 0.5, 0.1, 1),
    "dcl": lambda q, k, queue, y, z: oracles.decoupled(q, k, queue, 0.1, None),
    "dclw": lambda q, k, queue, y, z: oracles.decoupled(q, k, queue, 0.1, 0.5),
    "supcon": lambda q, k, queue, y, z: oracles.supcon(q, k, queue, y.tolist(), z.tolist(), 0.07),
}


def options_of(loss: str, wishes: str) -> PretrainOptions:
    """The options of a loss, with those of the wishes that it reads."""
    pairs = zip(wishes.split()[::2], wishes.split()[1::2], strict=True)
    read = {flag(name) for name in table.LOSSES[loss].settings.values()}
    return parse_pretrain(["folder", "--loss", loss, *(word for pair in pairs if pair[0] in read for word in pair)])


@pytest.mark.parametrize("loss", table.LOSSES)
def test_defaults_are_those_of_the_papers(loss: str) -> None:
    """From the command line: T .5, τ⁺ .1, β 1; α .0819; elsewhere MoCo's temperature."""
    q, k, queue = features(3, 40, 5)
    labels, queue_labels = torch.tensor([1, 0, -1]), torch.arange(40) % 4 - 1
    out = make_loss(parse_pretrain(["folder", "--loss", loss]))(q, k, queue, labels, queue_labels)
    torch.testing.assert_close(out.loss, HEADS_AS_CALLED[loss](q, k, queue, labels, queue_labels), **EXACT)
    assert not any(value.requires_grad for value in out.logs.values())


@pytest.mark.parametrize("loss", table.LOSSES)
def test_gradcheck(loss: str) -> None:
    loss = make_loss(options_of(loss, "--moco-t 0.3 --moco-hard-alpha 0.4"))
    raw_q, raw_k, queue = made_up(3, 8, 4)
    labels, queue_labels = labelled(3, 8)
    assert torch.autograd.gradcheck(
        lambda a, b: loss(F.normalize(a, dim=1), F.normalize(b, dim=1), queue, labels, queue_labels).loss,
        (raw_q, raw_k),
    )


@pytest.mark.parametrize("loss", table.LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_finite_where_exponentials_are_not(loss: str, dtype: torch.dtype) -> None:
    """e^{1/.005} overflows fp32; and the value in half precision is that of the same numbers in fp32, to the bit."""
    loss = make_loss(options_of(loss, "--moco-t 0.005 --moco-unif-t 100 --moco-tau-plus 0.5"))
    eye = torch.eye(4)
    labels = torch.arange(4)
    for q, k, queue in ((eye, -eye, eye), (eye, eye, -eye), (eye, eye, eye), (eye, -eye, -eye)):
        leaf, wide = q.to(dtype).requires_grad_(), [x.to(dtype).float() for x in (q, k, queue)]
        with torch.autocast("cpu", torch.bfloat16):
            loss_value = loss(leaf, k.to(dtype), queue.to(dtype), labels, labels).loss
        loss_value.backward()
        assert loss_value.isfinite() and leaf.grad is not None and leaf.grad.isfinite().all()
        assert loss_value.dtype == torch.float32 and loss_value.equal(loss(*wide, labels, labels).loss)


@pytest.mark.parametrize("loss", table.LOSSES)
def test_nothing_of_the_size_of_the_queue_is_kept_for_backward(loss: str) -> None:
    length = 700
    loss = make_loss(parse_pretrain(["folder", "--loss", loss]))
    raw_q, raw_k, queue = made_up(4, length, 8)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # type: ignore[func-returns-value]
        loss(F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1), queue, torch.arange(4), torch.arange(length) % 9)
    assert kept and max(x.numel() for x in kept) < length


@pytest.mark.parametrize("loss", table.LOSSES)
def test_the_queue_has_no_order_and_gets_no_gradient(loss: str) -> None:
    loss = make_loss(parse_pretrain(["folder", "--loss", loss]))
    q, k, queue = features(4, 8, 5, seed=3)
    labels, queue_labels = labelled(4, 8)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    leaf = queue.clone().requires_grad_()
    value = loss(q, k, leaf, labels, queue_labels).loss
    torch.testing.assert_close(loss(q, k, queue[:, order], labels, queue_labels[order]).loss, value, **EXACT)
    value.backward()
    assert leaf.grad is None


# -- hard negatives ----------------------------------------------------------------------------------------------------


def on_a_line(similarities: list[float]) -> tuple[Tensor, Tensor]:
    """A query [1, 2] and a queue of unit columns with these similarities to it."""
    s = torch.tensor(similarities, dtype=torch.float64)
    return torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.stack([s, (1 - s * s).sqrt()])


@pytest.mark.parametrize(
    ("similarities", "share", "hard"),
    [
        ([0.9, 0.5, 0.1, -0.2], 0.25, [0.9]),
        ([0.1, 0.9, -0.2, 0.5], 0.5, [0.9, 0.5]),
        ([0.9, 0.5, 0.1, -0.2], 0.6, [0.9, 0.5]),  # 2.4 is nearest to 2
        ([0.9, 0.5, 0.1, -0.2], 0.7, [0.9, 0.5, 0.1]),
        ([0.9, 0.5, 0.1, -0.2], 0.001, [0.9]),  # at least one
        ([0.5, 0.0, 0.5, 0.5], 0.25, [0.5] * 3),  # all that tie with the quantile are in
        ([0.9, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0], 0.25, [0.9, 0.5, 0.5, 0.5]),
    ],
)
def test_which_negatives_are_hard(similarities: list[float], share: float, hard: list[float]) -> None:
    q, queue = on_a_line(similarities)
    expected = math.log1p(sum(math.exp((s - 0.0) / 0.2) for s in hard))
    k = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert hard_contrastive_loss(q, k, queue, 0.2, share).item() == pytest.approx(expected, abs=1e-12)
    assert simple_loss(q, k, queue, 2.0, share).item() == pytest.approx(2 * sum(hard) / len(hard), abs=1e-12)


def test_the_papers_number_of_hard_negatives() -> None:
    """4,095 of CIFAR's 50,000 at α = .0819, where .0819 · 50,000 is a little above 4,095 in binary."""
    assert hard_count(0.0819, 50000) == 4095


def test_each_anchor_has_its_own_quantile() -> None:
    q, k, queue = features(3, 12, 4, seed=5)
    one_by_one = [hard_contrastive_loss(q[i : i + 1], k[i : i + 1], queue, 0.2, 0.25) for i in range(3)]
    torch.testing.assert_close(hard_contrastive_loss(q, k, queue, 0.2, 0.25), torch.stack(one_by_one).mean(), **EXACT)


def test_all_negatives_hard_is_infonce() -> None:
    q, k, queue = features(4, 9, 5)
    expected = contrastive_loss(q, k, queue, 0.2)
    torch.testing.assert_close(hard_contrastive_loss(q, k, queue, 0.2, 1.0), expected, **EXACT)


def test_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    raw_q, raw_k, queue = made_up(5, 10, 4)

    def both() -> tuple[Tensor, ...]:
        q, k = F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1)
        value = hard_contrastive_loss(q, k, queue, 0.2, 0.3) + simple_loss(q, k, queue, 1.0, 0.3)
        return value, *torch.autograd.grad(value, (raw_q, raw_k))

    expected = both()
    for at_once in (1, 20, 30):
        monkeypatch.setattr(hardness, "_AT_ONCE", at_once)
        torch.testing.assert_close(both(), expected, **EXACT)


def test_easy_negatives_have_no_gradient() -> None:
    """The gradient is the same whatever the far entries are."""
    q, queue = on_a_line([0.9, 0.8, -0.1, -0.3])
    k = q.clone()
    gradients = []
    for far in (queue, torch.cat([queue[:, :2], -queue[:, :2]], dim=1)):
        leaf = q.clone().requires_grad_()
        gradients.append(torch.autograd.grad(hard_contrastive_loss(leaf, k, far, 0.1, 0.5), leaf)[0])
    torch.testing.assert_close(*gradients, **EXACT)


def test_simple_is_infonce_of_infinite_temperature() -> None:
    """τ·(InfoNCE - log(K + 1)) → K/(K + 1) · simple, gradients too."""
    raw_q, raw_k, queue = made_up(4, 6, 5)
    q, k = F.normalize(raw_q, dim=1), F.normalize(raw_k, dim=1)
    scaled = 1e6 * (contrastive_loss(q, k, queue, 1e6) - math.log(7)) * 7 / 6
    simple = simple_loss(q, k, queue)
    torch.testing.assert_close(scaled, simple, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(scaled, raw_q, retain_graph=True), torch.autograd.grad(simple, raw_q), rtol=1e-4, atol=1e-6
    )


# -- debiased and HCL --------------------------------------------------------------------------------------------------


def test_without_prior_and_weights_it_is_infonce() -> None:
    q, k, queue = features(4, 9, 5)
    torch.testing.assert_close(debiased_loss(q, k, queue, 0.2, 0.0), contrastive_loss(q, k, queue, 0.2), **EXACT)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("prior", [0.0, 0.1, 0.6])
def test_collapsed_features(prior: float, beta: float) -> None:
    """R = K·e^{1/T}: what the correction takes, the division by 1 - τ⁺ gives back."""
    point = F.normalize(torch.ones(4, dtype=torch.float64), dim=0)
    x = point.repeat(3, 1)
    value = debiased_loss(x, x, point[:, None].repeat(1, 6), 0.5, prior, beta)
    assert value.item() == pytest.approx(math.log(7), abs=1e-12)


def test_the_lower_bound() -> None:
    """Key at the query, queue opposite to it: R - τ⁺·K·pos < 0, so N = K·e^{-1/T}, which has no gradient."""
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    k = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    queue = -q.T.repeat(1, 5)
    leaf = q.clone().requires_grad_()
    value = debiased_loss(leaf, k, queue, 0.5, 0.1, 1.0)
    bound = 5 * math.exp(-2)
    assert value.item() == pytest.approx(math.log1p(bound / math.exp(1.2)), abs=1e-12)
    share = bound / (bound + math.exp(1.2))
    torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], -share * k / 0.5, **EXACT)


def test_heavy_weights_leave_the_hardest_negative_alone() -> None:
    """β → ∞: R → K · the largest neg."""
    q, queue = on_a_line([0.7, 0.2, -0.4, 0.1])
    k = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    value = debiased_loss(q, k, queue, 0.5, 0.0, 400.0)
    assert value.item() == pytest.approx(math.log1p(4 * math.exp(0.7 / 0.5)), abs=1e-9)


def test_the_edge_of_the_bound_has_finite_gradients() -> None:
    """τ⁺·K·pos = R to the last bit: the logarithm of what is left is -inf, and must not reach the gradient."""
    q = torch.tensor([[1.0, 0.0]], requires_grad=True)
    k, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]]).repeat(1, 4)
    for prior in (0.999999, 1 - 2**-24, 0.5):
        value = debiased_loss(q, k, queue, 0.01, prior, 1.0)
        assert value.isfinite() and torch.autograd.grad(value, q)[0].isfinite().all()


# -- decoupled ---------------------------------------------------------------------------------------------------------


def test_a_positive_that_is_told_apart_still_pulls() -> None:
    """InfoNCE's gradient dies with the negatives' share of the denominator; DCL's gradient to the key is q/T whatever
    the negatives are."""
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    leaf = q.clone().requires_grad_()
    far = torch.tensor([[-1.0], [0.0]], dtype=torch.float64)
    (pull,) = torch.autograd.grad(decoupled_loss(q, leaf, far, 0.1), leaf)
    torch.testing.assert_close(pull, -q / 0.1, **EXACT)
    assert torch.autograd.grad(contrastive_loss(q, leaf, far, 0.1), leaf)[0].norm() < 1e-6


def test_weights_of_pairs() -> None:
    """Equal pairs weigh 1, the mean of the weights is 1, and the farthest pair weighs most."""
    assert positive_weights(torch.full((4,), 0.3), 0.5, None).tolist() == pytest.approx([1] * 4)  # type: ignore[union-attr]
    weights = positive_weights(torch.tensor([0.9, 0.5, -0.2]), 0.5, None)
    assert weights.mean().item() == pytest.approx(1) and weights.argmax() == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", ["dcl", "dclw"])
def test_decoupled_without_a_queue(loss: str) -> None:
    ranks = GlobalBatch()
    made = make_loss(parse_pretrain(["folder", "--moco-k", "0", "--loss", loss, "--moco-t", "0.3"]), ranks)
    assert made == InBatchDecoupledLoss(0.3, None if loss == "dcl" else 0.5, ranks)
    q, k, _ = features(4, 1, 3)
    expected = oracles.in_batch_decoupled(q, k, 0.3, made.sigma)
    torch.testing.assert_close(made(q, k, torch.empty(3, 0, dtype=q.dtype)).loss, expected, **EXACT)


# -- SupCon ------------------------------------------------------------------------------------------------------------


def test_without_labels_it_is_infonce() -> None:
    """-1 never matches -1."""
    q, k, queue = features(4, 8, 5)
    expected = contrastive_loss(q, k, queue, 0.2)
    for labels, of_queue in (([-1] * 4, [-1] * 8), ([0] * 4, [1] * 8), ([0, 1, 2, 3], [-1] * 8)):
        value = supcon_loss(q, k, queue, torch.tensor(labels), torch.tensor(of_queue), 0.2)
        torch.testing.assert_close(value, expected, **EXACT)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_two_classes_in_closed_form(temperature: float) -> None:
    """s of the queue at the query with its label, o at right angles with another; the own key at cosine .6."""
    eye = torch.eye(2, dtype=torch.float64)
    queue = eye[:, [0, 0, 0, 1, 1]]
    k = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    value = supcon_loss(eye[:1], k, queue, torch.tensor([7]), torch.tensor([7, 7, 7, 3, 3]), temperature)
    below = math.log(math.exp(0.6 / temperature) + 3 * math.exp(1 / temperature) + 2)
    assert value.item() == pytest.approx(below - (0.6 + 3) / 4 / temperature, abs=1e-10)


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_sums_of_the_same_label_in_chunks(chunk: int) -> None:
    _, _, queue = made_up(4, 8, 5)
    labels, of_queue = torch.tensor([1, 0, -1, 5]), torch.tensor(QUEUE_LABELS)
    total, count = supcon.sum_of_same_label(labels, queue, of_queue, chunk)
    assert count.tolist() == [3, 2, 0, 0]
    torch.testing.assert_close(total[0], queue[:, [1, 6, 7]].sum(1), **EXACT)
    torch.testing.assert_close(total[1], queue[:, [0, 4]].sum(1), **EXACT)
    assert not total[2:].any()


def test_supcon_asks_for_labels() -> None:
    q, k, queue = features(2, 3, 4)
    with pytest.raises(InputError, match="needs labels"):
        SupConLoss()(q, k, queue)
    table.check_labels("infonce", np.full(3, -1))
    table.check_labels("supcon", np.array([-1, 4, -1]))
    with pytest.raises(InputError, match="--loss supcon compares labels, but these images have none"):
        table.check_labels("supcon", np.full(3, -1))


# -- without a queue ---------------------------------------------------------------------------------------------------


@given(n=st.integers(2, 5), dim=st.integers(2, 6), seed=seeds, w=st.sampled_from([(1, 0, 0), (0, 1, 1), (0.5, 2, 3)]))
@settings(max_examples=20)
def test_in_batch_is_the_formula(n: int, dim: int, seed: int, w: tuple[float, float, float]) -> None:
    loss = InBatchLoss(w[0], 0.3, w[1], 1.5, w[2], 2.5)

    def formula(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        uniform = (oracles.pair_uniform(q, 2.5) + oracles.pair_uniform(k, 2.5)) / 2
        return w[0] * oracles.nt_xent(q, k, 0.3) + w[1] * oracles.align(q, k, 1.5) + w[2] * uniform

    assert_same_value_and_gradients(lambda q, k, queue: loss(q, k, queue[:, :0]).loss, formula, n, 1, dim, seed)


def test_in_batch_gradcheck() -> None:
    raw_q, raw_k, queue = made_up(3, 1, 4)
    loss = InBatchLoss(1.0, 0.3, 1.0, 1.5, 1.0, 2.0)
    assert torch.autograd.gradcheck(
        lambda a, b: loss(F.normalize(a, dim=1), F.normalize(b, dim=1), queue[:, :0]).loss, (raw_q, raw_k)
    )


def test_in_batch_closed_forms() -> None:
    """Collapsed: log(2N - 1) and 0. All at right angles but the pairs, which coincide: 2N - 2 negatives of similarity
    0; uniformity -2t."""
    point = F.normalize(torch.ones(5, 4, dtype=torch.float64), dim=1)
    none = point.T[:, :0]
    assert InBatchLoss(1.0, 0.07)(point, point, none).loss.item() == pytest.approx(math.log(9), abs=1e-12)
    assert InBatchLoss(0.0, unif_w=1.0)(point, point, none).loss.item() == pytest.approx(0, abs=1e-12)
    eye = torch.eye(4, dtype=torch.float64)
    expected = math.log1p(6 * math.exp(-1 / 0.2))
    assert InBatchLoss(1.0, 0.2)(eye, eye, eye[:, :0]).loss.item() == pytest.approx(expected, abs=1e-12)
    assert InBatchLoss(0.0, unif_w=1.0, unif_t=3.0)(eye, eye, eye[:, :0]).loss.item() == pytest.approx(-6, abs=1e-12)


def test_in_batch_the_views_may_change_places() -> None:
    q, k, queue = features(4, 1, 5)
    loss = InBatchLoss(1.0, 0.2, 2.0, 1.0, 3.0)
    torch.testing.assert_close(loss(q, k, queue[:, :0]).loss, loss(k, q, queue[:, :0]).loss, **EXACT)


# -- from the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--loss hard --moco-t 0.3 --moco-hard-alpha 0.0315", HardContrastiveLoss(0.3, 0.0315)),
        ("--loss simple --moco-simple-w 2", SimpleLoss(2.0, 1.0)),
        ("--loss hard-simple --moco-simple-w 2 --moco-hard-alpha 0.5", SimpleLoss(2.0, 0.5)),
        ("--loss debiased", DebiasedLoss(0.5, 0.1, 0.0)),
        ("--loss debiased --moco-t 0.1 --moco-tau-plus 0.01", DebiasedLoss(0.1, 0.01, 0.0)),
        ("--loss hcl --moco-beta 0.5", DebiasedLoss(0.5, 0.1, 0.5)),
        ("--loss supcon --moco-t 0.1", SupConLoss(0.1)),
    ],
)
def test_the_loss_is_what_the_options_say(words: str, expected: Any) -> None:
    assert make_loss(parse_pretrain(["folder", *words.split()])) == expected


def test_the_loss_without_a_queue() -> None:
    ranks = GlobalBatch()
    words = "--moco-k 0 --loss align-uniform --moco-unif-t 2 --moco-align-w 0.98"
    o = parse_pretrain(["folder", *words.split()])
    assert make_loss(o, ranks) == InBatchLoss(0.0, 0.07, 0.98, 2.0, 1.0, 2.0, True, ranks) and o.bn == "local"
    assert type(make_loss(parse_pretrain(["folder", "--moco-k", "0"]))) is InBatchLoss
    assert type(make_loss(parse_pretrain(["folder", "--moco-k", "1"]))) is WeightedLoss


@pytest.mark.parametrize("temperature", [("--loss infonce", 0.07), ("--loss hcl", 0.5), ("--moco-t 0.2", 0.2)])
def test_the_temperature_is_the_losss_own_unless_given(temperature: tuple[str, float]) -> None:
    assert parse_pretrain(["folder", *temperature[0].split()]).moco_t == temperature[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--loss hard --moco-hard-alpha 0", "--moco-hard-alpha must be greater than 0 and at most 1, not 0"),
        ("--loss hard-simple --moco-hard-alpha 1.5", "--moco-hard-alpha must be greater than 0 and at most 1"),
        ("--loss hard --moco-hard-alpha nan", "--moco-hard-alpha must be greater than 0 and at most 1, not nan"),
        ("--loss simple --moco-simple-w 0", "(--moco-simple-w) must be a positive number, not 0"),
        ("--loss hcl --moco-tau-plus 1", "--moco-tau-plus must be at least 0 and less than 1, not 1"),
        ("--loss debiased --moco-tau-plus -0.1", "must be at least 0 and less than 1, not -0.1"),
        ("--loss debiased --moco-tau-plus nan", "must be at least 0 and less than 1, not nan"),
        ("--loss hcl --moco-beta -1", "--moco-beta must be at least 0 and finite, not -1"),
        ("--loss hcl --moco-beta inf", "must be at least 0 and finite, not inf"),
        ("--loss hcl --moco-align-w 1", "mix the terms of infonce and align-uniform, which --loss hcl does not have"),
        ("--loss supcon --moco-contr-w 1", "which --loss supcon does not have: leave them out"),
        ("--loss hcl --moco-k 0", "--loss hcl takes its negatives from the queue, so --moco-k must be at least 1"),
        ("--loss supcon --moco-k 0", "--moco-k 0 works with: infonce, align-uniform"),
        ("--moco-k 0 --symmetric", "--symmetric has no meaning with --moco-k 0, where both views are queries"),
        ("--moco-k 0 --accum-steps 2", "--accum-steps splits the batch, but with --moco-k 0 all negatives"),
        ("--moco-k 0 --batch-size 1", "--batch-size must be at least 2"),
        ("--moco-k 0 --bn split", "--bn split separates keys from queries; it has no effect with --moco-k 0"),
        ("--moco-k 0 --bn shuffle", "pass --bn local, or --bn sync over several ranks"),
        ("--moco-k 0 --loss align-uniform --moco-unif-no-intra-batch", "--moco-unif-no-intra-batch needs a --moco-k"),
        ("--loss moco", "unknown --loss 'moco'; take one of infonce, "),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_sentence(words: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        parse_pretrain(["folder", *words.split()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [0.0, -0.07, math.nan, math.inf])
@pytest.mark.parametrize("loss", [HardContrastiveLoss, DebiasedLoss, SupConLoss, InBatchLoss, DecoupledLoss])
def test_temperatures_must_be_positive(loss: type, bad: float) -> None:
    with pytest.raises(InputError, match=r"the temperature \(--moco-t\) must be a positive number"):
        loss(temperature=bad)


# -- settings that follow the epoch ------------------------------------------------------------------------------------


def test_a_temperature_as_a_curve() -> None:
    """Of the epoch alone: a resumed run needs nothing saved."""
    words = "--moco-t 10:0.5,20:0.1,30:0.1 --moco-contr-w 1 --moco-unif-t 0:2,4:4"
    o = parse_pretrain(["folder", *words.split()])
    loss: Any = make_loss(o)
    found = []
    for epoch in (0, 1, 10, 15, 20, 25, 99):
        table.set_epoch(loss, o, epoch)
        found.append((loss.temperature, loss.unif_t))
    expected = [(0.5, 2), (0.5, 2.5), (0.5, 4), (0.3, 4), (0.1, 4), (0.1, 4), (0.1, 4)]
    assert [value for pair in found for value in pair] == pytest.approx([value for pair in expected for value in pair])
    assert table.curves(o, 15) == pytest.approx({"moco_t": 0.3, "moco_unif_t": 4})
    assert table.curves(parse_pretrain(["folder"]), 15) == {}


@pytest.mark.parametrize("loss", table.LOSSES)
def test_every_loss_with_a_temperature_follows_its_curve(loss: str) -> None:
    o = options_of(loss, "--moco-t 0:1,2:3")
    if "temperature" in table.LOSSES[loss].settings:
        made: Any = make_loss(o)
        temperatures = []
        for epoch in range(4):
            table.set_epoch(made, o, epoch)
            temperatures.append(made.temperature)
        assert temperatures == [1, 2, 3, 3]


@pytest.mark.parametrize("flag", ["--moco-t", "--moco-unif-t"])
@pytest.mark.parametrize(
    "bad", ["0:0.5", "warm", "0:0.5,", "5:0.1,5:0.2", "9:1,3:2", "-1:0.5,3:0.1", "0:a,1:b", "0.5:1,2:3", "0:1;1:2", ""]
)
def test_bad_curves(flag: str, bad: str) -> None:
    with pytest.raises(InputError, match=f"{flag}.*'{bad}' is neither a number nor a curve of rising epochs such as"):
        parse_pretrain(["folder", f"{flag}={bad}"])


@pytest.mark.parametrize("bad", ["0:0.5,9:0", "0:-1,9:1", "0:nan,9:1", "0:1,9:inf"])
def test_values_of_curves_must_be_positive(bad: str) -> None:
    with pytest.raises(InputError, match="--moco-t must be greater than 0, not"):
        parse_pretrain(["folder", "--moco-t", bad])
