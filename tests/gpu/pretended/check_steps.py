"""Training steps in every pair of settings: on the right device, without a wait for it, all of it deterministic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moco.data.augment import Augment
from moco.data.augment.recipes import RECIPES, find_recipe
from tests.gpu.pretended import trainer
from tests.gpu.pretended.gpu import Gpu
from tests.reliability.pairwise import pairwise

SETTINGS = {
    "loss": ["infonce", "align-uniform", "simple", "hard", "hard-simple", "debiased", "hcl", "dcl", "dclw", "supcon"],
    "bn": ["shuffle", "split --bn-group-size 2", "local", "sync"],
    "amp": ["off", "bf16", "fp16"],
    "more": ["", "--no-channels-last", "--grad-clip 1 --max-bad-steps 3"],
    "views": ["", "--symmetric", "--accum-steps 2"],
    "world": [1, 8],
}
QUEUE = "--moco-k 64 --bn {bn} --loss {loss} --amp {amp} {more} {views}"
FURTHER = [
    (1, "--moco-k 0 --amp bf16"),
    (8, "--moco-k 0 --amp fp16 --loss align-uniform"),
    (8, "--moco-k 0 --bn sync --grad-clip 1"),
    (8, "--moco-k 64 --loss align-uniform --unif-global --amp bf16"),
    (1, "--moco-k 64 --loss align-uniform --moco-align-alpha 1.5 --moco-contr-w 1 --moco-unif-no-intra-batch"),
    (1, "--moco-k 64 --mlp --amp bf16 --moco-t 0:0.5,1:0.1"),
    (8, "--moco-k 5 --amp bf16 --accum-steps 2 --symmetric"),
    (1, "--moco-k 64 --amp fp16 --online-probe --accum-steps 2"),
    (8, "--moco-k 64 --amp bf16 --online-probe --symmetric"),
]
RUNS_WITH_AUGMENTATIONS = {words for _, words in FURTHER[:2]}
RUNS = [(row["world"], QUEUE.format(**row)) for row in pairwise(SETTINGS)] + FURTHER


@pytest.mark.parametrize(("world", "words"), RUNS)
def test_a_step_never_waits(world: int, words: str, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if words not in RUNS_WITH_AUGMENTATIONS:
        trainer.leave_augmentations_out(patch)
    batch = 22 if world > 1 else 8  # uneven parts: three images on six ranks, two on two
    gpu, waits = trainer.two_steps(words, tmp_path, patch, world=world, batch=batch)
    assert gpu.faults == gpu.nondeterministic == []
    assert waits == []


@pytest.mark.parametrize("name", RECIPES)
def test_augmentations_never_wait(name: str) -> None:
    device = torch.device("cuda", 3)
    with Gpu(device) as gpu:
        augment = Augment(find_recipe(name), 0, compile=True)
        crops = torch.zeros((4, 12, 12, 3), dtype=torch.uint8, device=device)
        index = torch.zeros(4, dtype=torch.int64, device=device)
        augment(crops, index, 0)  # sends its constants
        gpu.waits.clear()
        for view in (0, 1):
            assert augment(crops, index, 1, view).device == device
    assert gpu.waits == gpu.faults == []
