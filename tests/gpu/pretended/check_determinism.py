"""Under --deterministic, all that a program asks of the GPU has a deterministic kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moco.builder import MoCo
from tests.gpu.pretended import trainer
from tests.gpu.pretended.nondeterministic import NAMES, listed_by_torch


@pytest.fixture(autouse=True)
def _arithmetic_as_before(patch: pytest.MonkeyPatch) -> Iterator[None]:
    patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def test_all_of_torchs_list_is_known() -> None:
    """A torch with a longer list fails here."""
    assert listed_by_torch() == set(NAMES) and len(NAMES) > 20


RUN = "--deterministic --recipe lincls --amp bf16 --epochs 1"


def test_a_run_its_evaluation_and_its_probes(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with trainer.on_gpu(patch) as (gpu, _):
        assert trainer.pretrain(f"{RUN} -b 8 --moco-k 16 --eval-freq 1", tmp_path) == 0
        assert torch.are_deterministic_algorithms_enabled()
        for form in ("--optimizer sgd", "--sweep", "--finetune", "--cached --sweep"):
            words = f"--deterministic --pretrained {tmp_path}/checkpoint_0000.pth.tar --epochs 1 -b 8 {form}"
            assert trainer.probe(words, tmp_path / form) == 0
    assert gpu.faults == gpu.nondeterministic == []


@pytest.mark.parametrize("words", ["-a resnet18 --recipe v2", "-a smallalexnet --image-size 64 --recipe byol"])
def test_a_step_with_every_augmentation(words: str, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu, _ = trainer.two_steps(f"{RUN} --moco-k 16 {words}", tmp_path, patch)
    assert gpu.faults == gpu.nondeterministic == []


FOUND: list[tuple[str | None, Callable[[Tensor], Any]]] = [
    ("cumsum", lambda x: x.cumsum(0)),
    ("median", lambda x: x.median(dim=0)),
    ("histc", lambda x: x.histc(4)),
    ("_adaptive_avg_pool2d_backward", lambda x: _differentiated(torch.nn.AdaptiveAvgPool2d(2), x[None, None])),
    ("grid_sampler_2d_backward", lambda x: _differentiated(_sampled, x[None, None])),
    (None, lambda x: x.long().cumsum(0)),
    (None, lambda x: _differentiated(torch.nn.AdaptiveAvgPool2d(1), x[None, None])),
    (None, lambda x: x.index_add(0, torch.zeros_like(x[0], dtype=torch.long), x)),
]


def _sampled(x: Tensor) -> Tensor:
    return torch.nn.functional.grid_sample(x, x.new_zeros(1, 2, 2, 2), align_corners=False)


def _differentiated(layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.enable_grad():
        layer(x.clone().requires_grad_()).sum().backward()


@pytest.mark.parametrize(("found", "operation"), FOUND)
def test_an_operation_put_into_the_step_is_found(
    found: str | None, operation: Callable[[Tensor], Any], patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = MoCo.update_key_encoder

    def update_key_encoder(model: MoCo) -> None:
        real(model)
        operation(model.queue[:, :8])

    patch.setattr(MoCo, "update_key_encoder", update_key_encoder)
    trainer.leave_augmentations_out(patch)
    gpu, _ = trainer.two_steps("--moco-k 16", tmp_path, patch)
    assert [line.partition(" at ")[0] for line in gpu.nondeterministic] == ([found] * 2 if found else [])
