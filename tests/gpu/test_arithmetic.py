"""Determinism on a GPU is settled before the first step: set, or refused with a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from moco.encoders import build_encoder
from moco.errors import InputError
from moco.run.arithmetic import check_deterministic, set_arithmetic

CUDA, CPU = torch.device("cuda", 3), torch.device("cpu")
CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    fill = torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled(), CUDNN.benchmark, CUDNN.allow_tf32, MATMUL.allow_tf32, fill
    yield
    torch.use_deterministic_algorithms(before[0])
    CUDNN.benchmark, CUDNN.allow_tf32, MATMUL.allow_tf32 = before[1:4]
    torch.utils.deterministic.fill_uninitialized_memory = before[4]


@pytest.mark.parametrize("deterministic", [False, True])
def test_everything_is_set_on_purpose(deterministic: bool) -> None:
    CUDNN.allow_tf32, MATMUL.allow_tf32 = False, True
    torch.utils.deterministic.fill_uninitialized_memory = True
    said = set_arithmetic(deterministic, CUDA)
    assert torch.are_deterministic_algorithms_enabled() is deterministic is not CUDNN.benchmark
    assert CUDNN.allow_tf32 and not MATMUL.allow_tf32
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
    assert f"deterministic {'on' if deterministic else 'off'}" in said and "TF32" in said and "cudnn.benchmark" in said


def test_a_workspace_that_forbids_determinism_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(InputError, match=r"type: export CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        set_arithmetic(True, CUDA)
    set_arithmetic(False, CUDA)
    set_arithmetic(True, CPU)


@pytest.mark.parametrize(("arch", "possible"), [("alexnet", False), ("resnet18", True), ("smallcnn", True)])
def test_networks_without_deterministic_pooling_are_refused(arch: str, possible: bool) -> None:
    encoder = build_encoder(arch, 4)
    check_deterministic(encoder, arch, False, CUDA)
    check_deterministic(encoder, arch, True, CPU)
    if possible:
        check_deterministic(encoder, arch, True, CUDA)
    else:
        with pytest.raises(InputError, match=r"--deterministic is not possible on a GPU with alexnet"):
            check_deterministic(encoder, arch, True, CUDA)
