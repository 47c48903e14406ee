"""The collectives of several ranks, rank after rank: all enter the same ones, in the same order, of fitting sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import moco.distributed
from moco.builder import MoCo
from moco.errors import EXIT_OK, EXIT_PREEMPTED
from moco.run.preemption import Preemption
from moco.world import World
from tests.gpu.pretended import trainer
from tests.gpu.pretended.world import Call, disagreements

RUN = "--recipe lincls --moco-k 16 --amp bf16 --print-freq 2"


def of_both_ranks(words: str, folder: Path, patch: pytest.MonkeyPatch, expected: int = EXIT_OK) -> list[list[Call]]:
    """The collectives of each rank of a run: two steps, of seven and six images."""
    calls = []
    for rank in (0, 1):
        with trainer.on_gpu(patch, 2, rank) as (gpu, own):
            assert trainer.pretrain(f"{RUN} --epochs 1 -b 13 {words}", folder / str(rank)) == expected
        assert gpu.faults == []
        calls.append(list(own))
    return calls


@pytest.mark.parametrize(
    "words",
    [
        "--eval-freq 1 --save-every 1",
        "--accum-steps 2 --symmetric --loss supcon --eval-freq 0",
        "--moco-k 0 --bn sync --loss align-uniform --unif-global --amp fp16 --eval-freq 0",
    ],
)
def test_all_ranks_enter_the_same_collectives(words: str, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = of_both_ranks(words, tmp_path, patch)
    assert len(calls[0]) > 20 and {"nccl", "gloo"} == {call.backend for call in calls[0]}
    assert disagreements(calls) == []


def test_also_when_a_step_is_not_applied(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer.pretend_bad_step(patch, 2)
    calls = of_both_ranks("--eval-freq 0 --max-bad-steps 5", tmp_path, patch)
    assert (tmp_path / "0" / "bad_step_00000002.json").exists()
    assert disagreements(calls) == []


@pytest.mark.parametrize(("signalled_at", "saved_at"), [(1, 2), (2, 3), (3, 3), (4, 5)])
def test_also_when_one_rank_is_preempted(
    signalled_at: int, saved_at: int, patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The signal reaches rank 1 alone, in one of the three steps of an epoch; the votes of the others come over gloo.

    All save after the next step, or at once in the last step of an epoch, which evaluations follow."""
    asked = []

    def signalled(_: Preemption) -> bool:
        asked.append(os.environ["RANK"])
        return os.environ["RANK"] == "1" and asked.count("1") >= signalled_at

    def all_reduce(x: torch.Tensor, *args: Any, **how: Any) -> Any:
        done = real(x, *args, **how)
        if not x.is_cuda and asked.count(os.environ["RANK"]) >= signalled_at:
            x[0] = 1  # rank 1's vote
        return done

    patch.setattr(Preemption, "__bool__", signalled)
    real = dist.all_reduce
    patch.setattr(dist, "all_reduce", all_reduce)
    calls = of_both_ranks("-b 8 --epochs 9 --eval-freq 1", tmp_path, patch, expected=EXIT_PREEMPTED)
    assert sum(call.name == "all_to_all_single" for call in calls[0]) == 3 * saved_at
    assert disagreements(calls) == []


@pytest.mark.parametrize("fault", ["one more", "another order", "another size"])
def test_a_rank_that_differs_is_found(fault: str, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = MoCo.update_key_encoder

    def update_key_encoder(model: MoCo) -> None:
        real(model)
        odd, x = moco.distributed.rank() == 1, model.queue
        if fault == "one more" and odd:
            dist.all_reduce(x.sum())
        if fault == "another order":
            for dtype in (torch.float32, torch.float64) if odd else (torch.float64, torch.float32):
                dist.all_reduce(x.sum(dtype=dtype))
        if fault == "another size":
            dist.all_reduce(x.sum(0)[: 1 + odd])

    patch.setattr(MoCo, "update_key_encoder", update_key_encoder)
    assert len(disagreements(of_both_ranks("--eval-freq 0", tmp_path, patch))) == 1


def test_uneven_exchange_is_that_of_the_sizes(patch: pytest.MonkeyPatch) -> None:
    """A rank that expects other numbers of rows than are sent to it would wait, or get another's rows."""
    calls = []
    for rank, (send, receive) in enumerate([([0, 2], [0, 1]), ([1, 0], [3, 0])]):
        with trainer.on_gpu(patch, 2, rank) as (gpu, own), moco.distributed.session(World.launched(), gpu.device):
            x = torch.zeros((sum(send), 4), device=gpu.device)
            assert moco.distributed.exchange_rows(x, send, receive).shape == (sum(receive), 4)
        calls.append(list(own))
    assert disagreements(calls) == ["collective 0: rank 0 sends 2 rows to rank 1, which expects 3"]
