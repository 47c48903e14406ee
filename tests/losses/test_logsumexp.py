"""The log-sum-exp over the queue: exact, the same bits whatever it is asked for, and never of the queue's size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moco.losses import logsumexp
from moco.losses.logsumexp import queue_logsumexp

CHOICE = logsumexp.sweep_for


@pytest.fixture(params=["running_sweep", "merging_sweep"], autouse=True)
def sweep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through the queue: a CPU's, and that of an accelerator."""
    monkeypatch.setattr(logsumexp, "sweep_for", lambda _: getattr(logsumexp, request.param))


def features(n: int, length: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + length)
    q = F.normalize(torch.randn(n, dim, generator=generator), dim=1)
    return q, F.normalize(torch.randn(dim, length, generator=generator), dim=0)


@pytest.mark.parametrize("scale", [1.0, 6.0, 1 / 0.07, -6.0])
@pytest.mark.parametrize("chunk", [None, 300, 5000])
def test_exact_in_fp32(chunk: int | None, scale: float) -> None:
    """To 1e-6 of the value, against float64 without chunks. 300: some chunks are merged before all are there."""
    q, queue = features(32, 5000, 128)
    q.requires_grad_()
    value = queue_logsumexp(q, queue, scale, chunk)
    (slope,) = torch.autograd.grad(value.sum(), q)
    wide = q.detach().double().requires_grad_()
    expected = (scale * wide @ queue.double()).logsumexp(dim=1)
    (expected_slope,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-5, atol=abs(scale) * 1e-6)


def test_norms_and_scales_that_overflow() -> None:
    q, queue = features(4, 600, 8)
    q, queue = 30 * q, 20 * queue
    for scale in (1.0, -1.0):
        expected = (scale * q.double() @ queue.double()).logsumexp(dim=1)
        assert expected.max() > 200
        for chunk in (None, 256):
            torch.testing.assert_close(queue_logsumexp(q, queue, scale, chunk).double(), expected, rtol=1e-6, atol=0)


def test_the_gradient_changes_no_bit_of_the_value() -> None:
    q, queue = features(16, 3000, 32)
    assert queue_logsumexp(q, queue, 5.0, 700).equal(queue_logsumexp(q.requires_grad_(), queue, 5.0, 700).detach())


class _Largest(TorchDispatchMode):
    """The most elements that one operation made anew, and the number of products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.elements = max(self.elements, out.numel())
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return out


@pytest.mark.parametrize("wants_gradient", [True, False])
def test_makes_nothing_of_the_size_of_the_queue(monkeypatch: pytest.MonkeyPatch, wants_gradient: bool) -> None:
    monkeypatch.setitem(logsumexp.ENTRIES, "cpu", 8 * 300)
    n, length, chunks = 8, 6000, 20
    q, queue = features(n, length, 16)
    with _Largest() as seen:
        value = queue_logsumexp(q.requires_grad_(wants_gradient), queue, 5.0)
        if wants_gradient:
            value.sum().backward()
    assert seen.elements == n * length // chunks
    assert seen.products == chunks * (2 if wants_gradient else 1), "without a gradient, half of the work"


def test_a_cpu_and_a_gpu_each_have_their_own_way() -> None:
    assert CHOICE(torch.device("cpu")) is logsumexp.running_sweep
    assert CHOICE(torch.device("cuda")) is logsumexp.merging_sweep


def test_a_queue_that_is_not_finite_shows() -> None:
    q, queue = features(4, 600, 8)
    queue[3, 500] = math.nan
    assert queue_logsumexp(q, queue, 5.0).isnan().all()
