"""Virtual groups against one plain BatchNorm per group; and that they replace every layer, without a trace in the
weights."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from moco.distributed import shares
from moco.encoders import build_encoder, group_values, split_batchnorm, sync_kernels
from moco.encoders.batchnorm import isolate_batchnorm
from moco.encoders.sync_batchnorm import SyncBatchNorm
from moco.errors import InputError


def plain_layer(channels: int, dims: int, seed: int = 0, **arguments: object) -> nn.Module:
    """In float64, with scale, shift and running statistics that are not 1 and 0."""
    torch.manual_seed(seed)
    layer = (nn.BatchNorm1d if dims == 0 else nn.BatchNorm2d)(channels, **arguments).double()
    for value in (*layer.parameters(), *(b for b in layer.buffers() if b.is_floating_point())):
        nn.init.uniform_(value, 0.5, 2)
    return layer


def split_of(layer: nn.Module, group_size: int) -> nn.Module:
    return isolate_batchnorm(nn.Sequential(copy.deepcopy(layer)), "split", group_size)[0]


WAYS = ("native", "gpu", "traced")


@contextlib.contextmanager
def computed(way: str) -> Iterator[None]:
    """As on a CPU; as on a GPU, torch's CUDA kernels written out and nothing compiled; as torch.compile sees it."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "gpu":
            patch.setattr(split_batchnorm, "_NativeValues", split_batchnorm._CompiledValues)
            patch.setattr(split_batchnorm, "kernels", lambda: (group_values.normalise, group_values.gradients))
            patch.setattr(torch, "batch_norm_stats", sync_kernels.batch_norm_stats)
            patch.setattr(torch, "batch_norm_backward_reduce", sync_kernels.batch_norm_backward_reduce)
        if way == "traced":
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
        yield


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
    nhwc=st.booleans(),
    way=st.sampled_from(WAYS),
)
@settings(max_examples=90)
def test_equals_one_layer_per_group(
    n: int, group_size: int, channels: int, dims: int, affine: bool, track: bool, nhwc: bool, way: str
) -> None:
    """Values, gradients to input, scale and shift, and the running statistics as the mean over the groups' own.

    Groups are consecutive samples, in NCHW as in NHWC."""
    layer = plain_layer(channels, dims, affine=affine, track_running_stats=track, momentum=0.3)
    split, x = split_of(layer, group_size), made_up(n, channels, dims)
    if nhwc and dims == 2:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    y = x.detach().clone().requires_grad_()
    groups = max(1, n // group_size)
    cotangent = made_up(n, channels, dims, seed=1)

    with computed(way):
        out = split(x)
        (out * cotangent).sum().backward()
    assert out.is_contiguous(memory_format=torch.channels_last if nhwc and dims == 2 else torch.contiguous_format)

    layers = [copy.deepcopy(layer) for _ in range(groups)]
    parts = [own(part) for own, part in zip(layers, y.split(shares(n, groups)), strict=True)]
    expected = torch.cat(parts)
    (expected * cotangent).sum().backward()
    expected = expected.detach()

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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [16, 19])
def test_under_autocast(dtype: torch.dtype, n: int, way: str) -> None:
    """Half-precision values, statistics in float32: equal to the layer in float32 to the rounding of the values."""
    torch.manual_seed(0)
    encoder = isolate_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True)), "split", 8)
    exact = copy.deepcopy(encoder)
    x, cotangent = torch.randn(n, 3, 8, 8), torch.randn(n, 4, 6, 6)
    with computed(way), torch.autocast("cpu", dtype):
        out = encoder(x)
        (out.float() * cotangent).sum().backward()
    expected = exact(x)
    (expected * cotangent).sum().backward()
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.05)
    torch.testing.assert_close(encoder[1].weight.grad, exact[1].weight.grad, rtol=0.05, atol=0.5)
    assert torch.cosine_similarity(encoder[0].weight.grad.flatten(), exact[0].weight.grad.flatten(), dim=0) > 0.999


def test_the_values_of_a_block_are_one_pass() -> None:
    """Compiled, nothing as large as the batch is held beside the result; other sizes need no second compilation, as a
    network has many and torch gives up after eight."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    works = group_values.normalise, group_values.gradients
    for work in works:
        torch._dynamo.reset()
        fused = torch.compile(work, dynamic=True)
        for groups, rows, channels in ((4, 300, 48), (8, 70, 24)):
            x, grad = (torch.randn(groups, rows, channels).bfloat16() for _ in range(2))
            statistics, sums = torch.rand(2, groups, channels), torch.rand(2, groups, channels)
            of_layer = tuple(torch.rand(channels) for _ in range(4))
            values = (x, statistics, *of_layer, 0.1, 1e-5)
            arguments = values if work is group_values.normalise else (grad, x, statistics, of_layer[0], sums)
            arguments = (torch.empty_like(x), *arguments)
            own, copied = copy.deepcopy(arguments), copy.deepcopy(arguments)
            if groups == 4:
                found, code = run_and_get_code(fused, *own)
                large = re.findall(r"= empty_strided_cpu\(\(\w+, \w+, \w+\), .*, (torch\.\w+)\)", "".join(code))
                assert large == []
            else:
                with torch._dynamo.config.patch(error_on_recompile=True):
                    found = fused(*own)
            torch.testing.assert_close(found, work(*copied), rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(own, copied, rtol=1e-2, atol=1e-2)  # the values, the running statistics


def test_a_whole_encoder_is_compiled_in_one_graph() -> None:
    encoder = isolate_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), "split", 4)
    plain, x = copy.deepcopy(encoder), torch.randn(11, 3, 6, 6)
    out = torch.compile(encoder, backend="aot_eager", fullgraph=True)(x)
    expected = plain(x)
    torch.testing.assert_close(out, expected)
    for graph in (out, expected):
        graph.square().sum().backward()
    for a, b in zip(encoder.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dict(encoder.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.parametrize("arch", ["resnet18", "smallalexnet", "smallcnn", "timm:resnet10t", "timm:regnetx_002"])
def test_replaces_every_layer_and_leaves_no_trace(arch: str) -> None:
    """timm's regnet has BatchNorm and activation in one layer; the activation must survive."""
    size = 64
    plain = build_encoder(arch, 8)
    split = isolate_batchnorm(copy.deepcopy(plain), "split", 2)
    assert list(split.state_dict()) == list(plain.state_dict())
    assert all(split.state_dict()[name].equal(value) for name, value in plain.state_dict().items())
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    plain.eval(), split.eval()
    assert split(x).equal(plain(x))
    # samples 0 and 1 are one group, 2 and 3 the other: the latter do not feel it when 0 moves
    split.train()
    with torch.no_grad():
        before = split(x)
        x[0] += 3 * torch.randn(x[0].shape, generator=torch.Generator().manual_seed(1))
        after = split(x)
    assert after[[2, 3]].equal(before[[2, 3]])
    assert not torch.allclose(after[1], before[1])
    batchnorms = [m for m in split.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    count = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in plain.modules())
    assert len(batchnorms) == count > 0
    assert {type(m).__name__ for m in batchnorms} == {"SplitBatchNorm"}


@pytest.mark.parametrize("mode", ["shuffle", "local"])
def test_other_modes_leave_the_encoder_alone(mode: str) -> None:
    encoder = build_encoder("smallcnn", 8)
    kinds = [type(m) for m in encoder.modules()]
    assert isolate_batchnorm(encoder, mode, 32) is encoder and [type(m) for m in encoder.modules()] == kinds


def test_sync_keeps_timms_activations() -> None:
    """torch's own conversion would leave them out of forward."""
    plain = build_encoder("timm:regnetx_002", 8).eval()
    synced = isolate_batchnorm(copy.deepcopy(plain), "sync").eval()
    assert list(synced.state_dict()) == list(plain.state_dict())
    batchnorms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert batchnorms and all(isinstance(m, SyncBatchNorm) for m in batchnorms)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(synced(x), plain(x))


@pytest.mark.parametrize(
    ("mode", "size", "told"),
    [("none", 32, "--bn none is unknown; choose one of shuffle, split, sync, local"), ("split", 1, "at least 2")],
)
def test_bad_settings(mode: str, size: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        isolate_batchnorm(build_encoder("smallcnn", 8), mode, size)
