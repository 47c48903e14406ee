"""A step asks no more of the GPU than docs/performance.md says: kernels and bytes do not creep in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import launches
from moco.builder import MoCo
from moco.encoders.batchnorm import isolate_batchnorm
from tests.gpu.pretended import trainer
from tests.gpu.pretended.counting import Count, count, multi_tensor
from tests.gpu.pretended.gpu import Gpu

BUDGET = json.loads(launches.FILE.read_text())
SMALL = "--recipe lincls --moco-k 64 --amp bf16"


def excess(found: Count, budget: dict[str, dict[str, int]]) -> list[str]:
    """The stages that need more than their budget."""
    nothing = {"kernels": 0, "bytes": 0}
    return [
        f"{stage}: {counted[stage]:,} {unit}, the most is {budget.get(stage, nothing)[unit]:,}"
        for unit, counted in (("kernels", found.kernels), ("bytes", found.bytes))
        for stage in counted
        if counted[stage] > budget.get(stage, nothing)[unit]
    ]


@pytest.mark.parametrize("ranks", launches.RANKS)
def test_no_stage_needs_more_than_the_table_says(ranks: int) -> None:
    found = launches.step(ranks, augmentations=ranks == 1)  # several ranks compile the same for smaller parts
    assert excess(found, BUDGET["counted"][str(ranks)]) == [], (
        "if that is on purpose, python -m benchmarks.launches writes the table anew"
    )


ENCODERS = ("query", "key", "backward")


@pytest.mark.parametrize("ranks", launches.RANKS)
def test_the_encoders_are_nearly_all_of_a_step(ranks: int) -> None:
    """Of the table, to which the test above holds the step. The loss's backward is counted with the encoders'."""
    stages = BUDGET["counted"][str(ranks)]
    others = [stages[stage] for stage in stages if stage not in ENCODERS]
    assert stages["head"]["kernels"] <= 40
    assert sum(stage["kernels"] for stage in others) <= 150
    if ranks == 1:  # optimiser and EMA do not shrink with a rank's part of the batch
        assert sum(stage["bytes"] for stage in others) <= 0.05 * sum(stages[stage]["bytes"] for stage in ENCODERS)


def test_one_more_kernel_is_seen(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = count(SMALL, tmp_path / "plain", images=8)
    budget = launches.record({1: plain})["counted"]["1"]
    assert excess(plain, budget) == []
    real = MoCo.update_key_encoder

    def update_key_encoder(model: MoCo) -> None:
        real(model)
        model.queue.add(1)

    patch.setattr(MoCo, "update_key_encoder", update_key_encoder)
    found = excess(count(SMALL, tmp_path / "more", images=8), budget)
    assert len(found) == 2 and all(line.startswith("EMA: ") for line in found)


def test_max_bad_steps_adds_a_few_kernels(tmp_path: Path) -> None:
    """Not some for each of the eighty statistics."""
    words = f"{SMALL} -a resnet18 --image-size 32 --bn local"
    plain, guarded = (
        sum(count(f"{words} {more}", tmp_path / str(len(more)), images=4).kernels.values())
        for more in ("", "--max-bad-steps 3")
    )
    assert 0 < guarded - plain <= 8


@pytest.mark.parametrize("samples", [64, 70])
def test_split_batchnorm_moves_no_more_than_the_plain_one(samples: int, patch: pytest.MonkeyPatch) -> None:
    """In NHWC, forward and backward: no copy of the batch, nor anything that grows with the number of groups."""
    trainer.prepare(patch)
    counted = {}
    for mode in ("local", "split"):
        counts = counted[mode] = Count()
        layer = isolate_batchnorm(nn.Sequential(nn.BatchNorm2d(32)), mode, 8)
        with Gpu(torch.device("cuda", 3)) as gpu:
            layer.to(gpu.device)
            x = torch.zeros((samples, 32, 28, 28), dtype=torch.bfloat16, device=gpu.device)
            x = x.to(memory_format=torch.channels_last).requires_grad_()
            gpu.waits.clear()
            gpu.listeners.append(counts)
            out = layer(x)
            out.backward(torch.ones_like(out))
        assert gpu.faults == gpu.waits == []
        assert out.is_contiguous(memory_format=torch.channels_last)
    assert sum(counted["split"].bytes.values()) <= 1.1 * sum(counted["local"].bytes.values())


def listened(work: Any) -> tuple[int, int]:
    """(kernels, bytes) of `work`, called with a float32 tensor [100, 10] of the GPU."""
    counted = Count()
    with Gpu(torch.device("cuda", 3)) as gpu:
        x = torch.zeros((100, 10), device=gpu.device)
        gpu.listeners.append(counted)
        work(x)
    return sum(counted.kernels.values()), sum(counted.bytes.values())


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda x: x + x, (1, 8000)),  # one argument, one result
        (lambda x: x.add_(x[0]), (1, 8040)),  # read, a row, written
        (lambda x: x.zero_(), (1, 4000)),
        (lambda x: x.t()[2:], (0, 0)),
        (lambda x: x + x[:1].expand(100, 10), (1, 8040)),  # the row is there once
        (lambda x: torch.empty_like(x), (0, 0)),
        (lambda x: x.sum(), (1, 4004)),
        (lambda x: torch._foreach_lerp_([x], [x.clone()], 0.5), (2, 8000 + 12000)),
    ],
)
def test_operations_are_counted_by_hand(work: Any, expected: tuple[int, int]) -> None:
    assert listened(work) == expected


def test_multi_tensor_launches() -> None:
    small, large = torch.empty(1, device="meta"), torch.empty(330 * 65536, device="meta")
    assert multi_tensor([[small] * 110]) == 1 and multi_tensor([[small] * 111]) == 2
    assert multi_tensor([[small] * 111] * 2) == 2
    assert multi_tensor([[large]]) == 2
