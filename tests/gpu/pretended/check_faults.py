"""Faults put in on purpose: each is found. Without these, a check that finds nothing would prove nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import moco.data.loader
import moco.distributed.shuffle
from moco.builder import MoCo
from moco.distributed.collectives import cpu_group
from moco.world import World
from tests.gpu.pretended import trainer
from tests.gpu.pretended.gpu import Gpu
from tests.gpu.pretended.world import Call, disagreements

QUEUE = "--moco-k 16 --amp bf16"


def put_into_the_step(patch: pytest.MonkeyPatch, fault: Callable[[Tensor], Any]) -> None:
    """`fault` is given a tensor of the GPU in each step."""
    real = MoCo.update_key_encoder

    def update_key_encoder(model: MoCo) -> None:
        real(model)
        with torch.no_grad():
            fault(model.queue)

    patch.setattr(MoCo, "update_key_encoder", update_key_encoder)


WAITS: list[tuple[str | None, Callable[[Tensor], Any]]] = [
    (".item()", lambda x: x.sum().item()),
    (".item()", lambda x: 1 if x.sum() > 0 else 0),
    (".item()", lambda x: x[0, :1].tolist()),
    ("blocking copy of [8, 16] from cuda to cpu", lambda x: x.cpu()),
    ("index by a mask", lambda x: x[x > 0]),
    ("index_put_ by a mask", lambda x: x.clone().index_put_((x > 0,), x[0, :1])),
    ("nonzero", lambda x: (x > 0).nonzero()),
    ("_unique2", lambda x: x.unique()),
    ("equal", lambda x: torch.equal(x, x)),
    ("blocking copy of [1] from cpu to cuda", lambda x: x * torch.tensor([2.0]).to(x.device)),
    ("blocking copy of [1] from cpu to cuda", lambda x: x * torch.tensor([2.0], device=x.device)),
    ("torch.cuda.synchronize", lambda x: torch.cuda.synchronize()),
    ("Stream.synchronize", lambda x: torch.cuda.current_stream().synchronize()),
    # and what is no wait: a number of the host is an argument of the kernel
    (None, lambda x: x * torch.tensor(2.0)),
    (None, lambda x: x * torch.full((1,), 2.0, device=x.device)),
    (None, lambda x: x.clone().masked_fill_(x > 0, 1.0)),
    (None, lambda x: x.clone().__setitem__(x > 0, 1.0)),
    (None, lambda x: torch.ones(1).pin_memory().to(x.device, non_blocking=True)),
]


def test_a_wait_in_the_step(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = [(found, number) for number, (found, _) in enumerate(WAITS) if found]
    seen: list[tuple[str, int]] = []
    for number, (_, fault) in enumerate(WAITS):
        put_into_the_step(patch, _numbered(fault, number, seen))
    gpu, waits = trainer.two_steps(QUEUE, tmp_path, patch)
    assert gpu.faults == []
    assert waits == [wait for wait, _ in seen[len(seen) // 2 :]]  # the second of two equal steps
    for (wait, at), (found, number) in zip(seen, expected * 2, strict=True):
        assert at == number and wait.startswith(found), wait


def _numbered(fault: Callable[[Tensor], Any], number: int, seen: list[tuple[str, int]]) -> Callable[[Tensor], None]:
    def run(x: Tensor) -> None:
        gpu = Gpu.current
        before = len(gpu.waits)
        fault(x)
        seen.extend((wait, number) for wait in gpu.waits[before:])

    return run


def test_a_host_tensor_that_meets_the_gpu(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_into_the_step(patch, lambda x: x * torch.ones(x.shape))
    with pytest.raises(RuntimeError, match=r"at least two devices, cuda:3 and cpu"):
        trainer.two_steps(QUEUE, tmp_path, patch, world=8)


def test_a_tensor_on_gpu_0_in_the_process_of_rank_3(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the main thread "cuda" is the rank's own device, in another thread it is the first."""

    def in_a_thread(_: Tensor) -> None:
        thread = threading.Thread(target=lambda: torch.ones(3, device="cuda"))
        thread.start()
        thread.join()

    put_into_the_step(patch, lambda x: torch.ones(3, device="cuda"))
    put_into_the_step(patch, lambda x: torch.ones(2, device="cuda:0"))
    put_into_the_step(patch, in_a_thread)
    gpu, _ = trainer.two_steps(QUEUE, tmp_path, patch, world=8)
    assert len(gpu.faults) == 4 and all("a tensor on cuda:0 (ones)" in fault for fault in gpu.faults)


def test_a_loader_thread_that_opens_a_context_on_gpu_0(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leaving torch.cuda.stream sets the device of before, which in a new thread is the first."""
    real = moco.data.loader._Filling._ship

    class NoDevice:
        def __init__(self, _: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: Any) -> None: ...

    def ship(filling: Any) -> None:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(torch.cuda, "device", NoDevice)
            real(filling)

    patch.setattr(moco.data.loader._Filling, "_ship", ship)
    gpu, _ = trainer.two_steps(QUEUE, tmp_path, patch, world=8)
    assert gpu.faults == ["a context on device [0] in the process of cuda:3"]


def test_a_copy_that_only_says_it_does_not_block(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def copy_without_waiting(x: Tensor, device: torch.device) -> Tensor:
        return x.to(device, non_blocking=True)

    patch.setattr(moco.distributed.shuffle, "copy_without_waiting", copy_without_waiting)
    gpu, _ = trainer.two_steps(QUEUE, tmp_path, patch)
    assert gpu.faults and all("memory that is not pinned at moco/distributed/shuffle.py" in f for f in gpu.faults)


def test_collectives_that_nccl_refuses(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def aside(x: Tensor) -> None:
        with torch.cuda.stream(torch.cuda.Stream(x.device)):
            dist.all_reduce(x.sum(0))

    faults: list[tuple[str, Callable[[Tensor], Any]]] = [
        ("all_reduce of a GPU tensor over gloo", lambda x: dist.all_reduce(x.sum(0), group=cpu_group())),
        ("all_reduce of a tensor that is not contiguous", lambda x: dist.all_reduce(x.t()[:, 1:])),
        ("all_gather_object over NCCL's group", lambda x: dist.all_gather_object([None] * 8, 1)),
        ("all_reduce on a side stream", aside),
    ]
    for _, fault in faults:
        put_into_the_step(patch, fault)
    gpu, _ = trainer.two_steps(QUEUE, tmp_path, patch, world=8)
    assert len(gpu.faults) == 2 * len(faults)
    for fault, (found, _) in zip(gpu.faults, faults * 2, strict=True):
        assert fault.startswith(found), fault


def test_a_collective_after_the_end(patch: pytest.MonkeyPatch) -> None:
    with trainer.on_gpu(patch, world=8) as (gpu, _):
        with moco.distributed.session(World.launched(), gpu.device):
            pass
        with pytest.raises(ValueError, match="Default process group"):
            dist.all_reduce(torch.ones(1, device=gpu.device))
    assert "after the group was destroyed" in gpu.faults[0]


def test_ranks_that_disagree() -> None:
    a, b = (Call("all_reduce", "nccl", (n,), torch.float32) for n in (1, 2))
    assert disagreements([[a, b], [a, b]]) == []
    assert "collective 0 differs" in disagreements([[a, b], [b, a]])[0]
    assert disagreements([[a, b], [a]]) == ["the ranks make [1, 2] collectives"]
    splits = (((1, 2), (1, 1)), ((1, 1), (2, 1)))
    exchange = [Call("all_to_all_single", "nccl", (3, 5), None, sent, received) for sent, received in splits]
    assert disagreements([[call] for call in exchange]) == []
    wrong = Call("all_to_all_single", "nccl", (3, 5), None, (2, 0), (2, 1))
    assert "rank 1 sends 2 rows to rank 0, which expects 1" in disagreements([[exchange[0]], [wrong]])[0]
