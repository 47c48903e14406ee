"""Augments batches on a device: uint8 crops in, normalised float images out.

Workers decode and crop. Colours and blur are changed here for a whole batch, and each sample has its own parameters.
torchvision's transforms draw once per call, so once for a batch, from a generator with a state. Here each parameter is
a function of (seed, epoch, sample index, view): a sample looks the same in any batch, on any rank, after any resume.
Results equal torchvision's functional operations on float images, sample by sample, in the drawn order.

Two ways compute the same numbers, up to rounding. On an accelerator, `everywhere` runs every operation on every sample
and selects the results, because choosing samples first would mean waiting for the device. On a CPU,
`moco.data.augment.samplewise` runs on each sample only the operations drawn for it. Images that are not RGB always take
the first way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moco.compiled import compiled
from moco.data.augment import batched as pixels
from moco.data.augment.on_device import everywhere
from moco.data.augment.parameters import MOST_DRAWS, NO_JITTER, Parameters, draw, stream_keys
from moco.data.augment.recipes import RECIPES, Recipe, View, find_recipe
from moco.errors import InputError
from moco.randomness import column_steps, key_tensor

__all__ = ["RECIPES", "Augment", "Parameters", "Recipe", "View", "draw", "find_recipe"]

SAMPLES_PER_TASK = 4  # for a CPU thread at a time: few, so threads end together; enough, so the queue costs little


class Augment:
    """Augments crops: augment(crops, index, epoch, view) -> images.

    crops: uint8 [n, S, S, C]. index: int64 [n], the samples' numbers in the data set, on the crops' device. Returns
    `dtype` [n, C, S, S] in channels_last memory format, normalised by the recipe's mean and std. The arithmetic is
    float32 for any `dtype`, also under autocast; only the result is rounded. compile: fuses the operations on an
    accelerator. If that fails, and on a CPU, it has no effect. Raises InputError for crops that are not uint8
    [n, S, S, C] with the C of the recipe's mean.
    """

    def __init__(self, recipe: Recipe, seed: int, *, compile: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.recipe = recipe
        self.seed = seed
        self.dtype = dtype
        self._constants: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._keys: dict[int, tuple[tuple[int, torch.device], Tensor]] = {}  # of each view, the last ones used
        self._everywhere = _compiled() if compile else everywhere

    @torch.no_grad()
    def __call__(self, crops: Tensor, index: Tensor, epoch: int, view: int = 0) -> Tensor:
        _check(crops, index, len(self.recipe.mean))
        if not len(crops):
            return torch.empty(crops.shape, dtype=self.dtype, device=crops.device).permute(0, 3, 1, 2)
        operations = self.recipe.view(view)
        scale, shift, steps = self._on(crops.device)
        kernel = _kernel() if crops.device.type == "cpu" and crops.shape[-1] == 3 and operations.rgb else None
        if kernel is not None:
            parameters = draw(operations, self.seed, epoch, index, view)
            out = _one_by_one(kernel, crops, parameters, operations, scale, shift).to(self.dtype)
            return out.permute(0, 3, 1, 2)
        keys = self._stream_keys(epoch, view, crops.device)
        with torch.autocast(crops.device.type, enabled=False):
            return self._everywhere(crops, index, keys, steps, scale, shift, operations, self.dtype)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Returns constants on `device`: scale [C], shift [C], steps.

        bytes * scale + shift are the normalised values. steps: of the columns of `uniform`. They are kept for each
        device, because sending them there means waiting.
        """
        if device not in self._constants:
            std = torch.tensor(self.recipe.std)
            scale = 1 / (pixels.WHITE * std)
            shift = -torch.tensor(self.recipe.mean) / std
            self._constants[device] = scale.to(device), shift.to(device), column_steps(MOST_DRAWS).to(device)
        return self._constants[device]

    def _stream_keys(self, epoch: int, view: int, device: torch.device) -> Tensor:
        """Returns int64 [purposes], sent once an epoch without waiting."""
        where, keys = self._keys.get(view, (None, None))
        if where != (epoch, device) or keys is None:
            keys = key_tensor(stream_keys(self.seed, epoch, view))
            if device.type == "cuda":
                keys = keys.pin_memory().to(device, non_blocking=True)
            self._keys[view] = (epoch, device), keys
        return keys


def _check(crops: Tensor, index: Tensor, channels: int) -> None:
    square = crops.ndim == 4 and crops.shape[1] == crops.shape[2]
    if crops.dtype != torch.uint8 or not square or crops.shape[-1] != channels:
        raise InputError(f"augmentation takes uint8 crops [n, S, S, {channels}], not {crops.dtype} {list(crops.shape)}")
    if index.shape != crops.shape[:1]:
        raise InputError(f"augmentation takes one index per crop, not {list(index.shape)} for {crops.shape[0]} crops")


# On an accelerator --------------------------------------------------------------------------------


@cache
def _compiled() -> Callable[..., Tensor]:
    """Returns `everywhere`, compiled once for the process.

    There is one graph for each different view, for any number of samples.
    """
    fused = compiled(everywhere, "augmentations")

    def run(crops: Tensor, index: Tensor, *more: Any) -> Tensor:
        for tensor in (crops, index):  # the last batch of an evaluation is smaller
            torch._dynamo.maybe_mark_dynamic(tensor, 0)  # type: ignore[no-untyped-call, unused-ignore]
        return fused(crops, index, *more)

    return run


# On a CPU -----------------------------------------------------------------------------------------


@cache
def _kernel() -> Callable[..., None] | None:
    """Returns the compiled samplewise code; None without numba.

    numba supports new versions of Python late. The import is here because training on a GPU does not need it.
    """
    try:
        from moco.data.augment import samplewise
    except ImportError as error:
        warnings.warn(f"augmentations on this CPU are several times slower without numba: {error}", stacklevel=2)
        return None
    return samplewise.augment


def _one_by_one(
    kernel: Callable[..., None], crops: Tensor, p: Parameters, view: View, scale: Tensor, shift: Tensor
) -> Tensor:
    """Augments samples on as many threads as torch would use.

    crops: uint8 [n, S, S, 3]. Returns normalised float32 [n, S, S, 3].
    """
    n, size = crops.shape[:2]
    # NumPy asks the kernel for huge pages: the first access to each small page takes longer than writing the batch.
    out = np.empty(crops.shape, np.float32)
    if not crops[:1].is_contiguous():
        crops = crops.contiguous()
    # In one of several views, the samples begin `stride` bytes apart. The array is flat, so that the compiled code can
    # rely on contiguous bytes.
    stride = crops.stride(0) if n > 1 else 0
    flat = crops.as_strided(((n - 1) * stride + size * size * 3,), (1,)).numpy()
    arguments = (
        flat,
        stride,
        _or(p.order, np.arange(4), n),
        _or(p.factors, np.array(NO_JITTER, np.float32), n),
        _or(p.grayscale, np.bool_(False), n),
        view.grayscale_first,
        _or(p.sigma, np.float32(0), n),
        _or(p.solarize, np.bool_(False), n),
        _or(p.degrees, np.float32(0), n),
        _or(p.flip, np.bool_(False), n),
        scale.numpy(),
        shift.numpy(),
        out,
    )

    def run(first: int) -> None:
        kernel(first, min(first + SAMPLES_PER_TASK, n), *arguments)

    tasks = range(0, n, SAMPLES_PER_TASK)
    threads = min(torch.get_num_threads(), len(tasks))
    for _ in map(run, tasks) if threads <= 1 else _pool(threads).map(run, tasks):
        pass
    return torch.from_numpy(out)


def _or(drawn: Tensor | None, identity: np.ndarray | np.generic, n: int) -> np.ndarray:
    # Always contiguous and writable: for arrays of another kind numba would compile everything a second time.
    return np.array(np.broadcast_to(identity, (n, *identity.shape)) if drawn is None else drawn.numpy(), order="C")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "augment")
