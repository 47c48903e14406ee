"""Virtual groups against one plain BatchNorm per group; and that they replace every layer, without a trace in the
weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from moco.encoders import build_encoder
from moco.encoders.batchnorm import isolate_batchnorm
from moco.errors import InputError

CPU = torch.device("cpu")


def plain_layer(channels: int, dims: int, seed: int = 0, **arguments: object) -> nn.Module:
    """In float64, with scale, shift and running statistics that are not 1 and 0."""
    torch.manual_seed(seed)
    layer = (nn.BatchNorm1d if dims == 0 else nn.BatchNorm2d)(channels, **arguments).double()
    for value in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
        nn.init.uniform_(value, 0.5, 2)
    return layer


def split_of(layer: nn.Module, group_size: int) -> nn.Module:
    return isolate_batchnorm(nn.Sequential(copy.deepcopy(layer)), "split", group_size, CPU)[0]


def made_up(n: int, channels: int, dims: int, seed: int = 0) -> Tensor:
    """Every sample at a place and of a width of its own, so that each group has other statistics."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, *[3] * dims, generator=generator, dtype=torch.float64)
    return x * torch.rand(n, 1, *[1] * dims, generator=generator, dtype=torch.float64) + torch.arange(n).view(
        -1, 1, *[1] * dims
    )


@given(
    n=st.integers(2, 23),
    group_size=st.integers(2, 8),
    channels=st.integers(1, 3),
    dims=st.sampled_from([0, 2]),
    affine=st.booleans(),
    track=st.booleans(),
)
@settings(max_examples=30)
def test_equals_one_layer_per_group(
    n: int, group_size: int, channels: int, dims: int, affine: bool, track: bool
) -> None:
    """Values, gradients to input, scale and shift, and the running statistics as the mean over the groups' own."""
    layer = plain_layer(channels, dims, affine=affine, track_running_stats=track, momentum=0.3)
    split, x = split_of(layer, group_size), made_up(n, channels, dims).requires_grad_()
    y = x.detach().clone().requires_grad_()
    groups = max(1, n // group_size)
    cotangent = made_up(n, channels, dims, seed=1)

    out = split(x)
    (out * cotangent).sum().backward()

    layers = [copy.deepcopy(layer) for _ in range(groups)]
    expected = torch.empty_like(cotangent)
    for g, own in enumerate(layers):
        part = own(y[g::groups])
        expected[g::groups] = part.detach()
        (part * cotangent[g::groups]).sum().backward()

    torch.testing.assert_close(out.detach(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-8, atol=1e-8)
    for name, parameter in split.named_parameters():
        total = sum(dict(own.named_parameters())[name].grad for own in layers)
        torch.testing.assert_close(parameter.grad, total, rtol=1e-8, atol=1e-8)
    for name, buffer in split.named_buffers():
        values = torch.stack([dict(own.named_buffers())[name].double() for own in layers])
        torch.testing.assert_close(buffer.double(), values.mean(0), rtol=1e-9, atol=1e-9)


@given(n=st.integers(4, 24), group_size=st.integers(2, 9))
@settings(max_examples=25)
def test_groups_are_as_large_as_asked(n: int, group_size: int) -> None:
    """Found out from outside: samples of one group, and no others, move when one of them does. Sizes differ by at most
    one and none is below the group size, unless the batch itself is."""
    split = split_of(plain_layer(1, 0), group_size)
    x = made_up(n, 1, 0)
    with torch.no_grad():
        before = split(x)
        sizes = []
        for i in range(n):
            moved = x.clone()
            moved[i] += 100
            together = (split(moved) != before).any(1)
            assert together[i]
            sizes.append(int(together.sum()))
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(group_size, n)
    assert max(sizes) < 2 * group_size or n < 2 * group_size


def test_evaluation_and_small_batches_are_those_of_the_plain_layer() -> None:
    layer = plain_layer(4, 2)
    split, x = split_of(layer, 8), made_up(20, 4, 2)
    assert split(x[:15]).equal(layer(x[:15]))  # one group
    assert all(a.equal(b) for a, b in zip(split.state_dict().values(), layer.state_dict().values(), strict=True))
    assert split.eval()(x).equal(layer.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [16, 19])
def test_under_autocast(dtype: torch.dtype, n: int) -> None:
    encoder = isolate_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "split", 8, CPU)
    with torch.autocast("cpu", dtype):
        out = encoder(torch.randn(n, 3, 8, 8))
    out.float().sum().backward()
    assert out.isfinite().all() and encoder[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("arch", ["resnet18", "smallalexnet", "smallcnn", "timm:resnet10t", "timm:regnetx_002"])
def test_replaces_every_layer_and_leaves_no_trace(arch: str) -> None:
    """timm's regnet has BatchNorm and activation in one layer; the activation must survive."""
    size = 64
    plain = build_encoder(arch, 8)
    split = isolate_batchnorm(copy.deepcopy(plain), "split", 2, CPU)
    assert list(split.state_dict()) == list(plain.state_dict())
    assert all(split.state_dict()[name].equal(value) for name, value in plain.state_dict().items())
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    plain.eval(), split.eval()
    assert split(x).equal(plain(x))
    # samples 0 and 2 are one group, 1 and 3 the other: the latter do not feel it when 0 moves
    split.train()
    with torch.no_grad():
        before = split(x)
        x[0] += 3 * torch.randn(x[0].shape, generator=torch.Generator().manual_seed(1))
        after = split(x)
    assert after[[1, 3]].equal(before[[1, 3]])
    assert not torch.allclose(after[2], before[2])
    batchnorms = [m for m in split.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    count = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in plain.modules())
    assert len(batchnorms) == count > 0
    assert {type(m).__name__ for m in batchnorms} == {"_SplitBatchNorm"}


@pytest.mark.parametrize("mode", ["shuffle", "local"])
def test_other_modes_leave_the_encoder_alone(mode: str) -> None:
    encoder = build_encoder("smallcnn", 8)
    kinds = [type(m) for m in encoder.modules()]
    assert isolate_batchnorm(encoder, mode, 32, CPU) is encoder and [type(m) for m in encoder.modules()] == kinds


def test_sync_needs_a_gpu_and_says_so() -> None:
    with pytest.raises(InputError, match=r"--bn sync needs a GPU .* take --bn shuffle or --bn split"):
        isolate_batchnorm(build_encoder("smallcnn", 8), "sync", 32, CPU)


def test_sync_keeps_timms_activations() -> None:
    """torch's own conversion would leave them out of forward; in evaluation the layers run without a GPU."""
    plain = build_encoder("timm:regnetx_002", 8).eval()
    synced = isolate_batchnorm(copy.deepcopy(plain), "sync", 32, torch.device("cuda")).eval()
    assert list(synced.state_dict()) == list(plain.state_dict())
    batchnorms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert batchnorms and all(isinstance(m, nn.SyncBatchNorm) for m in batchnorms)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(synced(x), plain(x))


@pytest.mark.parametrize(
    ("mode", "size", "told"),
    [("none", 32, "--bn none is unknown; choose one of shuffle, split, sync, local"), ("split", 1, "at least 2")],
)
def test_bad_settings(mode: str, size: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        isolate_batchnorm(build_encoder("smallcnn", 8), mode, size, CPU)
