"""Several processes against one. The checks are in worker.py, which is started once with 2 ranks, by
torchrun, and once with 8; here each check is a test that reads its result."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from moco import distributed
from moco.distributed.global_batch import GlobalBatch
from moco.distributed.session import pick_device
from moco.distributed.shuffle import RowShuffle
from moco.errors import InputError
from moco.world import World, inside

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
# from the source, so that a check without a result is a failure
CHECKS = [
    node.name
    for node in ast.parse(WORKER.read_text()).body
    if isinstance(node, ast.FunctionDef) and any(getattr(d, "id", "") == "check" for d in node.decorator_list)
]


def run_worker(world: int, folder: Path) -> dict[str, list[str]]:
    results = folder / f"results{world}.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}", str(WORKER), str(results)]
    process = subprocess.Popen(
        [sys.executable, *(torchrun if world == 2 else [str(WORKER), str(results), str(world)])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    assert results.exists(), f"the worker did not end:\n{output[-8000:]}"
    return json.loads(results.read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[str]]]:
    """By number of ranks; started when the first test asks."""
    folder = tmp_path_factory.mktemp("ranks")
    return {world: run_worker(world, folder) for world in (2, 8)}


@pytest.mark.timeout(450)
@pytest.mark.parametrize("world", [2, 8])
@pytest.mark.parametrize("name", CHECKS)
def test_ranks(outcomes: dict[int, dict[str, list[str]]], world: int, name: str) -> None:
    failures = outcomes[world][name]
    assert not failures, f"failed on {len(failures)} ranks, first on\n{failures[0]}"


# -- without processes -------------------------------------------------------------------------------------------------


@given(n=st.integers(0, 200), world=st.integers(1, 64))
def test_shares(n: int, world: int) -> None:
    sizes = distributed.shares(n, world)
    assert sum(sizes) == n and len(sizes) == world
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@given(n=st.integers(0, 50), world=st.integers(1, 9))
def test_shares_of_all_ranks_are_the_whole(n: int, world: int) -> None:
    whole: list[int] = []
    for rank in range(world):
        with inside(World(rank, world)):
            whole += range(n)[distributed.share(n)]
    assert whole == list(range(n))


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2)
    thing: Any = object()
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather_rows(x).equal(x) and distributed.gather_rows(x, [3]).equal(x)
    for reduce in (distributed.all_reduce_sum, distributed.all_reduce_max):
        assert reduce(x).equal(x)
    assert distributed.broadcast_object(thing) is thing and distributed.gather_objects(thing) == [thing]
    assert distributed.on_rank_0(lambda: thing) is thing
    assert distributed.LateVote()(True, False) == [True, False]
    assert distributed.exchange_rows(x, [3], [3]) is x
    assert distributed.share(5) == slice(0, 5)
    distributed.barrier()
    layer = torch.nn.BatchNorm1d(2)
    distributed.broadcast_buffers(layer)
    assert distributed.data_parallel(layer, torch.device("cpu")) is layer
    assert GlobalBatch().gather(x) == (x, 0) and GlobalBatch().logsumexp(x) is x
    with distributed.session(World(), torch.device("cpu")):
        assert not torch.distributed.is_initialized()


def test_shuffle_of_one_process_is_a_permutation_too() -> None:
    x = torch.arange(9)
    shuffle = RowShuffle(3, [9])
    assert not shuffle.shuffle(x).equal(x) and shuffle.unshuffle(shuffle.shuffle(x)).equal(x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_says_what_to_do() -> None:
    assert pick_device("auto", World()) == pick_device("cpu", World()) == torch.device("cpu")
    with pytest.raises(InputError, match=r"sees no GPU; install a CUDA build of torch or pass --device cpu"):
        pick_device("cuda", World())


def test_more_ranks_than_gpus_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"8 processes on this node but 2 GPUs; pass a smaller --nproc_per_node"):
        pick_device("auto", World(10, 16, local_rank=2, local_size=8))
    assert pick_device("auto", World(9, 16, local_rank=1, local_size=8)) == torch.device("cuda", 1)
