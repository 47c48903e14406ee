"""SyncBatchNorm of uneven ranks against plain BatchNorm of the whole batch.

The ranks are run one after the other: what one of them would receive is computed beforehand. tests/distributed has real
processes. On a GPU, torch's kernels are compared with plain BatchNorm as well.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.encoders import sync_batchnorm
from moco.encoders.sync_batchnorm import SyncBatchNorm
from moco.encoders.sync_kernels import batch_norm_stats

SIZES, CHANNELS, EPS = (4, 2, 3), 5, 1e-5
Rows = list[Tensor]


@pytest.mark.parametrize("shape", [(CHANNELS,), (CHANNELS, 3, 2)])
def test_ranks_normalise_as_one(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_batchnorm, "world_size", lambda: len(SIZES))
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(sum(SIZES), *shape, generator=generator, dtype=torch.float64) + 3 for _ in range(2))
    layer = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(CHANNELS, momentum=0.3).double()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 2)
    synced = [SyncBatchNorm(CHANNELS, momentum=0.3).double() for _ in SIZES]
    for one in synced:
        one.load_state_dict(layer.state_dict())
    whole = x.clone().requires_grad_()
    expected = layer(whole)
    expected.backward(grad)

    own = [part.clone().requires_grad_() for part in x.split(SIZES)]
    counts = [torch.tensor([part.numel() / CHANNELS]) for part in own]
    sent = torch.stack(
        [torch.cat([*batch_norm_stats(part.detach(), EPS), n]) for part, n in zip(own, counts, strict=True)]
    )
    monkeypatch.setattr(sync_batchnorm, "gather_rows", lambda row: sent if any(row[0].equal(r) for r in sent) else None)
    out = [one(part) for one, part in zip(synced, own, strict=True)]
    torch.testing.assert_close(torch.cat(out), expected)

    sums: Rows = []
    monkeypatch.setattr(sync_batchnorm, "all_reduce_sum", lambda x: sums.append(x) or x)
    for part, of_rank in zip(out, grad.split(SIZES), strict=True):
        part.backward(of_rank, retain_graph=True)
    monkeypatch.setattr(sync_batchnorm, "all_reduce_sum", lambda _: torch.stack(sums).sum(0))
    for one, part, leaf, of_rank in zip(synced, out, own, grad.split(SIZES), strict=True):
        leaf.grad = one.weight.grad = one.bias.grad = None
        part.backward(of_rank)
    torch.testing.assert_close(torch.cat([leaf.grad for leaf in own]), whole.grad)
    for name in ("weight", "bias"):
        total = torch.stack([getattr(one, name).grad for one in synced]).sum(0)
        torch.testing.assert_close(total, getattr(layer, name).grad)
    for one in synced:
        for name, value in layer.state_dict().items():
            torch.testing.assert_close(one.state_dict()[name], value)


def test_one_rank_and_evaluation_are_plain() -> None:
    x = torch.randn(6, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(1))
    layer, synced = nn.BatchNorm2d(CHANNELS), SyncBatchNorm(CHANNELS, after=nn.ReLU())
    for _ in range(2):
        assert synced(x).equal(F.relu(layer(x)))
    assert synced.state_dict().keys() == layer.state_dict().keys()
    assert all(synced.state_dict()[name].equal(value) for name, value in layer.state_dict().items())
    assert synced.eval()(x).equal(F.relu(layer.eval()(x)))


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_kernels_of_a_gpu_do_the_same(memory_format: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A world in which every rank is this one."""
    monkeypatch.setattr(sync_batchnorm, "world_size", lambda: 2)
    monkeypatch.setattr(sync_batchnorm, "gather_rows", lambda row: torch.cat([row, row]))
    monkeypatch.setattr(sync_batchnorm, "all_reduce_sum", lambda x: 2 * x)
    x = torch.randn(6, CHANNELS, 4, 4, device="cuda").to(memory_format=memory_format)
    results = []
    for layer, images in ((SyncBatchNorm(CHANNELS).cuda(), x), (nn.BatchNorm2d(CHANNELS).cuda(), torch.cat([x, x]))):
        leaf = images.clone().requires_grad_()
        out = layer(leaf)
        out.square().mul(torch.arange(CHANNELS, device="cuda").view(1, -1, 1, 1)).sum().backward()
        results.append((out[:6], leaf.grad[:6], layer.running_mean, layer.running_var))  # type: ignore[index]
    torch.testing.assert_close(results[0], results[1])
