"""What watches the numbers: it must see one flipped bit, name the tensor and the rank, and stay silent otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from moco.builder import MoCo
from moco.data.sampler import Sampler
from moco.errors import NumericsError
from moco.metrics import uniformity
from moco.pretrain import watch as health
from moco.pretrain.watch import check_agreement, collapse, fingerprint, must_agree, write_repro
from moco.randomness import Purpose, stream_key


def tiny() -> MoCo:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 8))
    return MoCo(encoder.to(memory_format=torch.channels_last), dim=8, K=16, bn="local")


@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8]),
    bit=st.integers(0, 7),
    byte=st.integers(0, 10**6),
)
def test_any_flipped_bit_changes_the_fingerprint(dtype: torch.dtype, bit: int, byte: int) -> None:
    x = torch.arange(60).reshape(3, 4, 5).to(dtype)
    before = fingerprint({"x": x})
    raw = x.view(-1).view(torch.uint8)
    raw[byte % len(raw)] ^= 1 << bit
    assert not fingerprint({"x": x}).equal(before)


def test_fingerprint_of_odd_tensors() -> None:
    """NaN, other memory formats and empty tensors have one too."""
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    x[0, 0, 0, 0] = float("nan")
    assert fingerprint({"x": x, "none": torch.zeros(0)}).shape == (2,)
    assert fingerprint({"x": x}).equal(fingerprint({"x": x.contiguous()}))


def test_weights_and_queue_must_agree_but_not_batchnorm() -> None:
    names = must_agree(tiny()).keys()
    assert {"queue", "queue_ptr", "queue_labels", "encoder_q.0.weight", "encoder_k.0.weight"} <= names
    assert not [name for name in names if "running" in name or "tracked" in name]


def ranks(monkeypatch: pytest.MonkeyPatch, others: list[torch.Tensor]) -> None:
    """Pretends that the other ranks have these fingerprints."""
    monkeypatch.setattr(health, "world_size", lambda: 1 + len(others))
    monkeypatch.setattr(health, "gather_rows", lambda mine: torch.cat([mine, *(o[None] for o in others)]))


def test_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    assert check_agreement(model, 10, 20) == 20  # alone
    same = fingerprint(must_agree(model))
    ranks(monkeypatch, [same, same])
    assert check_agreement(model, 10, 20) == 20


def test_one_of_three_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    same = fingerprint(must_agree(model))
    index = list(must_agree(model)).index("encoder_q.3.weight")
    other = same.clone()
    other[index] += 1
    ranks(monkeypatch, [same, other])
    message = r"rank 2 differs from the others in encoder_q\.3\.weight, after step 10 and by step 20"
    with pytest.raises(NumericsError, match=message):
        check_agreement(model, 10, 20)
    other[0] += 1
    with pytest.raises(NumericsError, match="and 1 more"):
        check_agreement(model, 10, 20)


def test_two_ranks_cannot_tell_who_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    ranks(monkeypatch, [fingerprint(must_agree(model))])
    with torch.no_grad():
        model.queue[3, 7] += 1e-3
    with pytest.raises(NumericsError, match="the ranks differ in queue,"):
        check_agreement(model, 10, 20)


def test_collapse_is_told_from_health() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = nn.functional.normalize(torch.randn(100, 16, generator=generator), dim=1)
    point = nn.functional.normalize(torch.ones(100, 16) + 0.01 * spread, dim=1)
    assert collapse({"uniformity": uniformity(spread).item()}) is None
    assert "nearly one point" in str(collapse({"uniformity": uniformity(point).item()}))
    assert collapse({}) is None
    assert collapse({"uniformity": float("nan")}) is None  # a matter for the other alarm


def test_repro_file_names_the_batch_and_its_randomness(tmp_path: Path) -> None:
    sampler = Sampler(100, 10, seed=7, world_size=3)
    details = {"loss_scale": float("inf"), "options": {"lr": 0.03}}
    name = write_repro(sampler, 2, 4, 24, {"loss": 3.5}, details, tmp_path)
    assert name == "bad_step_00000024.json"
    record = json.loads((tmp_path / name).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    np.testing.assert_array_equal(record["indices"], sampler.global_batch(2, 4))
    assert record["rank_sizes"] == [4, 3, 3]
    assert int(record["random_streams_of_views"]["crop"][1], 16) == stream_key(7, 2, Purpose.CROP, 1)
    assert record["last_finite"] == {"loss": 3.5}
    assert record["loss_scale"] == "Infinity" and record["options"] == {"lr": 0.03}
