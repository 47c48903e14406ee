"""Augments batches on a device: uint8 crops in, normalised float images out.

Workers decode and crop. Colours and blur are done here for a whole batch, and each sample has its own parameters.
torchvision's transforms draw once per call, so once for a batch, from a generator that is a state. Here each parameter
is a function of (seed, epoch, sample index, view): a sample looks the same in any batch, on any rank, after any resume.
Results equal torchvision's functional operations on float images, sample by sample, in the drawn order.

There are two ways to the same numbers, to rounding. On an accelerator `everywhere` runs every operation on every sample
and selects, because to choose samples would mean to wait for the device. On a CPU `moco.data.augment.samplewise` runs
on each sample only what was drawn for it; images that are not RGB take the first way there too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from moco.data.augment import batched as pixels
from moco.data.augment.parameters import BRIGHTNESS, CONTRAST, HUE, NO_JITTER, SATURATION, Parameters, draw
from moco.data.augment.recipes import RECIPES, Recipe, View, find_recipe
from moco.data.compiled import compiled
from moco.errors import InputError

__all__ = ["RECIPES", "Augment", "Parameters", "Recipe", "View", "draw", "find_recipe"]

SAMPLES_PER_TASK = 4  # of a CPU thread: few enough that threads end together, enough that handing out costs nothing


class Augment:
    """augment(crops, index, epoch, view) -> images.

    crops: uint8 [n, S, S, C]; index: int64 [n], the samples' numbers in the data set, on the crops' device.
    Returns `dtype` [n, C, S, S] in channels_last memory format, normalised by the recipe's mean and std. Arithmetic
    is float32 throughout, whatever `dtype` and autocast say; only the result is rounded. `compile` fuses the passes
    on an accelerator; where that fails, and on a CPU, it changes nothing. InputError for crops that are not uint8 [n,
    S, S, C] with the C of the recipe's mean.
    """

    def __init__(self, recipe: Recipe, seed: int, *, compile: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.recipe = recipe
        self.seed = seed
        self.dtype = dtype
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._everywhere = _compiled() if compile else everywhere

    @torch.no_grad()
    def __call__(self, crops: Tensor, index: Tensor, epoch: int, view: int = 0) -> Tensor:
        _check(crops, index, len(self.recipe.mean))
        if not len(crops):
            return torch.empty(crops.shape, dtype=self.dtype, device=crops.device).permute(0, 3, 1, 2)
        operations = self.recipe.view(view)
        parameters = draw(operations, self.seed, epoch, index, view)
        scale, shift = self._normalisation(crops.device)
        kernel = _kernel() if crops.device.type == "cpu" and crops.shape[-1] == 3 else None
        if kernel is not None:
            out = _one_by_one(kernel, crops, parameters, operations, scale, shift).to(self.dtype)
        else:
            with torch.autocast(crops.device.type, enabled=False):
                x = self._everywhere(crops, parameters, operations)
                out = (x * scale[:, None] + shift[:, None]).to(self.dtype).transpose(2, 3).contiguous()
        return out.permute(0, 3, 1, 2)

    def _normalisation(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """scale, shift [C]: bytes * scale + shift are normalised. Kept per device: sending them there is a wait."""
        if device not in self._constants:
            std = torch.tensor(self.recipe.std)
            scale, shift = 1 / (pixels.WHITE * std), -torch.tensor(self.recipe.mean) / std
            self._constants[device] = scale.to(device), shift.to(device)
        return self._constants[device]


def _check(crops: Tensor, index: Tensor, channels: int) -> None:
    square = crops.ndim == 4 and crops.shape[1] == crops.shape[2]
    if crops.dtype != torch.uint8 or not square or crops.shape[-1] != channels:
        raise InputError(f"augmentation takes uint8 crops [n, S, S, {channels}], not {crops.dtype} {list(crops.shape)}")
    if index.shape != crops.shape[:1]:
        raise InputError(f"augmentation takes one index per crop, not {list(index.shape)} for {crops.shape[0]} crops")


# On an accelerator --------------------------------------------------------------------------------


def everywhere(crops: Tensor, p: Parameters, view: View) -> Tensor:
    """uint8 [n, S, S, C] -> float32 [n, S, C, S] in [0, 255]; no value is read back from the device."""
    if p.flip is not None:
        crops = torch.where(pixels.per_sample(p.flip), crops.flip(2), crops)
    x = crops.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    if p.degrees is not None:
        x = pixels.rotate(x, _mirrored(p.degrees, p.flip))
    if p.grayscale is not None and view.grayscale_first:
        x = torch.where(pixels.per_sample(p.grayscale), pixels.luma(x), x)
    if p.order is not None and p.factors is not None:
        x = _jitter(x, p.order, p.factors)
    if p.grayscale is not None and not view.grayscale_first:
        x = torch.where(pixels.per_sample(p.grayscale), pixels.luma(x), x)
    if p.sigma is not None:
        x = pixels.blur(x, p.sigma, pixels.blur_radius(view.sigma[1], x.shape[1]))
    if p.solarize is not None:
        x = torch.where(pixels.per_sample(p.solarize), pixels.solarize(x), x)
    return x


def _jitter(x: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Four rounds; in each, every sample undergoes the operation that its order puts there."""
    if x.shape[2] != 3:
        return _jitter_channels(x, order, factors)
    for which in order.unbind(1):
        due = pixels.per_sample(which)
        grey = pixels.luma(x)
        flat = torch.where(due == CONTRAST, grey.mean((1, 2, 3), keepdim=True), 0.0)
        blended = pixels.blend(x, torch.where(due == SATURATION, grey, flat), factors.gather(1, which[:, None]))
        x = torch.where(due == HUE, pixels.shift_hue(x, factors[:, HUE]), blended)
    return x


def _jitter_channels(x: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """`_jitter` of images that are not RGB: brightness, and contrast about each channel's own mean."""
    for which in order.unbind(1):
        due = pixels.per_sample(which)
        base = torch.where(due == CONTRAST, x.mean((1, 3), keepdim=True), 0.0)
        blended = pixels.blend(x, base, factors.gather(1, which[:, None]))
        x = torch.where((due == CONTRAST) | (due == BRIGHTNESS), blended, x)
    return x


@cache
def _compiled() -> Callable[[Tensor, Parameters, View], Tensor]:
    """`everywhere`, compiled once for the process."""
    return compiled(everywhere, "augmentations", dynamic=False)


def _mirrored(degrees: Tensor, flip: Tensor | None) -> Tensor:
    """The flip runs first, on bytes, though the view puts it last: it commutes with all but the rotation, whose sense
    it turns."""
    return degrees if flip is None else torch.where(flip, -degrees, degrees)


# On a CPU -----------------------------------------------------------------------------------------


@cache
def _kernel() -> Callable[..., None] | None:
    """The compiled samplewise code; None where there is no numba, which lags behind new Pythons. Imported on first use:
    who trains on a GPU need not wait for it."""
    try:
        from moco.data.augment import samplewise
    except ImportError as error:
        warnings.warn(f"augmentations on this CPU are several times slower without numba: {error}", stacklevel=2)
        return None
    return samplewise.augment


def _one_by_one(
    kernel: Callable[..., None], crops: Tensor, p: Parameters, view: View, scale: Tensor, shift: Tensor
) -> Tensor:
    """uint8 [n, S, S, 3] -> normalised float32 [n, S, S, 3], by as many threads as torch would use."""
    n, size = crops.shape[:2]
    # NumPy asks the kernel for huge pages: touching a fresh batch page by page takes longer than writing it.
    out = np.empty(crops.shape, np.float32)
    if not crops[:1].is_contiguous():
        crops = crops.contiguous()
    # One view of several: samples follow each other at a distance. Flat, so that the compiled code knows its bytes
    # are in a row.
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
