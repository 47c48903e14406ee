"""The losses of --keys batch against loops over pairs, in float64: values, gradients, and what takes no gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moco.distributed.global_batch import GlobalBatch
from moco.errors import InputError
from moco.losses import BatchKeysDecoupledLoss, BatchKeysLoss
from moco.losses.table import LOSSES, make_loss
from moco.pretrain.options import parse_pretrain
from tests import oracles

EXACT = dict(rtol=1e-10, atol=1e-10)
T = 0.3


def decoupled(q: Tensor, k: Tensor, sigma: float | None) -> Tensor:
    weights = oracles.dclw_weights(q, k, sigma)
    terms = []
    for i in range(len(q)):
        others = oracles.others_columns(k, i)
        negatives = sum(torch.exp((q[i] * others[:, j]).sum() / T) for j in range(others.shape[1]))
        terms.append(torch.log(negatives) - weights[i] * (q[i] * k[i]).sum() / T)
    return sum(terms, q.new_zeros(())) / len(q)


ORACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    f"--moco-t {T}": lambda q, k: oracles.moco_v3_ctr(q, k, T),
    "--loss align-uniform": lambda q, k: 3 * oracles.align(q, k, 2) + oracles.batch_keys_uniform(q, k, 3, True),
    f"--moco-contr-w 0.5 --moco-t {T} --moco-unif-t 2 --moco-unif-no-intra-batch": lambda q, k: (
        0.5 * oracles.moco_v3_ctr(q, k, T) + 3 * oracles.align(q, k, 2) + oracles.batch_keys_uniform(q, k, 2, False)
    ),
    f"--loss dcl --moco-t {T}": lambda q, k: decoupled(q, k, None),
    f"--loss dclw --moco-t {T}": lambda q, k: decoupled(q, k, 0.5),
}


@pytest.mark.parametrize("words", ORACLES)
def test_value_and_gradient(words: str) -> None:
    generator = torch.Generator().manual_seed(3)
    leaves = [torch.randn(5, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    q, k = (oracles.unit_rows(leaf) for leaf in leaves)
    loss = make_loss(parse_pretrain(["folder", "--keys", "batch", *words.split()]))
    value = loss(q, k.detach(), torch.empty(4, 0, dtype=q.dtype)).loss
    expected = ORACLES[words](q, k.detach())
    torch.testing.assert_close(value, expected, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(x, leaves[0], retain_graph=True)[0] for x in (value, expected)))


def test_two_images_in_closed_form() -> None:
    """Queries on their keys, the other key opposite: 2T·log(1 + e^{-2/T})."""
    q = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    expected = 2 * T * torch.log1p(torch.exp(torch.tensor(-2 / T, dtype=torch.float64)))
    torch.testing.assert_close(BatchKeysLoss(1.0, T)(q, q, q.new_empty(2, 0)).loss, expected, **EXACT)


def test_losses_that_need_a_queue_are_refused() -> None:
    with_keys = {name for name, row in LOSSES.items() if row.batch_keys}
    assert with_keys == {"infonce", "align-uniform", "dcl", "dclw"}
    for name in LOSSES.keys() - with_keys:
        with pytest.raises(InputError, match=f"--loss {name} takes its negatives from the queue.*--keys batch works"):
            parse_pretrain(["folder", "--keys", "batch", "--loss", name])
    o = parse_pretrain(["folder", "--keys", "batch", "--loss", "dclw"])
    ranks = GlobalBatch()
    assert make_loss(o, ranks) == BatchKeysDecoupledLoss(0.1, 0.5, ranks) and o.bn == "local" and o.moco_k == 0
