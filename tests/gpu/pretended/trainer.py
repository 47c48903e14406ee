"""The programs of this project on a pretended GPU. The only file here that knows how they are put together."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import moco.data.augment.apply as augmentations
import moco.pretrain.__main__ as pretraining
import moco.probe.__main__ as probing
from moco.data.augment import Augment
from moco.data.source import ArraySource
from moco.encoders import split_batchnorm
from moco.losses import logsumexp
from moco.pretrain import optimiser, state
from moco.pretrain.step import TrainingStep
from moco.timing import timeline
from tests.gpu.pretended.gpu import Gpu, Listener
from tests.gpu.pretended.missing_kernels import compiled_gradients, compiled_softmax, compiled_values
from tests.gpu.pretended.world import Call, rank_of

IMAGES, SIDE, CLASSES = 26, 8, 3
SMALL = ["--dataset", "digits", "--device", "cuda", "-a", "smallcnn", "--image-size", "16", "-j", "1", "--seed", "0"]
QUIET = ["--no-tensorboard", "--moco-dim", "8"]


class Enough(Exception):
    """Raised to end a program after the steps that were to be looked at."""


def source(images: int = IMAGES) -> ArraySource:
    """Stands in for a data set: a few grey images of three classes."""
    labels = np.arange(images) % CLASSES
    pixels = np.full((images, SIDE, SIDE, 3), 128, np.uint8)
    return ArraySource(pixels, labels.astype(np.int64), [f"class {c}" for c in range(CLASSES)], "made up")


def prepare(patch: pytest.MonkeyPatch, images: int = IMAGES) -> None:
    """What is not to be tried: reading of data sets, and compiling, which FakeTensors do not go through."""
    for name, module in list(sys.modules.items()):
        if name.startswith("moco.") and hasattr(module, "open_split"):
            patch.setattr(module, "open_split", lambda *_, **__: source(images))
    patch.setattr(augmentations, "_compiled", lambda: augmentations.everywhere)
    patch.setattr(split_batchnorm, "kernels", lambda: (compiled_values, compiled_gradients))
    patch.setattr(logsumexp, "fused_softmax", lambda: compiled_softmax)


def pretrain(words: str, folder: Path) -> int:
    return pretraining.main([*SMALL, *QUIET, "--output-dir", str(folder), *words.split()])


def probe(words: str, folder: Path) -> int:
    return probing.main([*SMALL, "--output-dir", str(folder), *words.split()])


@contextmanager
def steps_watched(
    gpu: Gpu, patch: pytest.MonkeyPatch, last: int | None = None, listeners: Sequence[Listener] = ()
) -> Iterator[list[list[str]]]:
    """Yields a list that gets each training step's waits for the device.

    `last`: Enough is raised after that step. `listeners` are those of the GPU during each step.
    """
    of_steps: list[list[str]] = []
    real = TrainingStep.__call__

    def step(self: TrainingStep, *args: Any, **how: Any) -> Any:
        before = len(gpu.waits)
        gpu.listeners[:] = listeners
        out = real(self, *args, **how)
        gpu.listeners.clear()
        of_steps.append(gpu.waits[before:])
        if len(of_steps) == last:
            raise Enough
        return out

    with patch.context() as here:
        here.setattr(TrainingStep, "__call__", step)
        yield of_steps


@contextmanager
def on_gpu(patch: pytest.MonkeyPatch, world: int = 1, rank: int = 0) -> Iterator[tuple[Gpu, list[Call]]]:
    """A process that is `rank` of `world`, on GPU 3. Yields the GPU, and the list of its collectives."""
    timeline.__init__()  # type: ignore[misc]  # as in a new process
    with Gpu(torch.device("cuda", 3)) as gpu, rank_of(world, rank, gpu, patch) as calls:
        yield gpu, calls


def leave_augmentations_out(patch: pytest.MonkeyPatch) -> None:
    """A quarter of a small step's operations: for checks of something else."""

    def augment(self: Augment, crops: Tensor, *_: Any) -> Tensor:
        return crops.permute(0, 3, 1, 2).float()

    patch.setattr(augmentations.Augment, "__call__", augment)


def two_steps(
    words: str, folder: Path, patch: pytest.MonkeyPatch, *, world: int = 1, batch: int = 8
) -> tuple[Gpu, list[str]]:
    """Runs two steps, the last rank's of several. Returns the GPU, and the second step's waits for it."""
    with (
        on_gpu(patch, world, world - 1) as (gpu, _),
        steps_watched(gpu, patch, last=2) as waits,
        pytest.raises(Enough),
    ):
        pretrain(f"--epochs 9 -b {batch} --recipe lincls --eval-freq 0 {words}", folder)
    return gpu, waits[1]


# Faults of a run, put in on purpose --------------------------------------------------------------------


def pretend_bad_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """When the run asks, step `number` was not applied, because its gradient was not finite."""
    patch.setattr(optimiser.GuardedOptimizer, "report", lambda _: torch.tensor([1, number]))


def load_momentum_contiguous(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint's momentum comes back in another layout than its weight, and nobody looks."""

    def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        for entry in saved["state"].values():
            entry["momentum_buffer"] = entry["momentum_buffer"].contiguous()
        optimizer.load_state_dict(saved)

    patch.setattr(state, "load_state", load_state)
    patch.setattr(optimiser, "check_layouts", lambda _: None)
