"""The batched half of the augmentations: uint8 crops in, normalised float images out, on the device the crops are on.

Workers decode and crop; everything photometric happens here, for a whole batch, with parameters of its own for each sample.
torchvision's transforms draw once per call (so once per batch, on a batch) from a generator that is a state; here each parameter is
a function of (seed, epoch, sample index, view), so a sample looks the same in any batch, on any rank, after any resume. Results
equal torchvision's functional ops on float images, sample by sample, in the drawn order.

Two ways to the same numbers (to rounding). An accelerator runs every operation on every sample and selects, because choosing
samples would mean waiting for it. A CPU sorts the samples by what they need, cuts them into blocks that fit its cache and runs on
each block only what is due there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from moco.data import pixels
from moco.data.parameters import BRIGHTNESS, CONTRAST, HUE, NO_JITTER, SATURATION, Parameters, draw
from moco.data.recipes import RECIPES, Recipe, View, find_recipe
from moco.errors import InputError

__all__ = ["RECIPES", "Augment", "Parameters", "Recipe", "View", "draw", "find_recipe"]

BLOCK_PIXELS = 1 << 16  # of a CPU's block: one image at 224 pixels; as float32 planes 768 KiB, within one core's L2 cache

Operation = Callable[[Tensor, Tensor, Tensor | None], Tensor]
JITTER: dict[int, Operation] = {
    BRIGHTNESS: pixels.brighten_,
    CONTRAST: pixels.contrast_,
    SATURATION: pixels.saturate_,
    HUE: pixels.shift_hue_,
}


class Augment:
    """augment(crops, index, epoch, view) -> images.

    crops: uint8 [n, S, S, 3]; index: int64 [n], the samples' numbers in the data set, on the crops' device.
    Returns `dtype` [n, 3, S, S] in channels_last memory format, normalised by the recipe's mean and std. Arithmetic is float32
    throughout, whatever `dtype` and autocast say; only the result is rounded. `compile` fuses the passes on an accelerator; where
    that fails, and on a CPU, it changes nothing. InputError for crops that are not uint8 [n, S, S, 3].
    """

    def __init__(self, recipe: Recipe, seed: int, *, compile: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.recipe = recipe
        self.seed = seed
        self.dtype = dtype

    @torch.no_grad()
    def __call__(self, crops: Tensor, index: Tensor, epoch: int, view: int = 0) -> Tensor:
        _check(crops, index)
        operations = self.recipe.view(view)
        parameters = draw(operations, self.seed, epoch, index, view)
        std = torch.tensor(self.recipe.std).view(3, 1)
        scale = 1 / (pixels.WHITE * std)
        shift = -torch.tensor(self.recipe.mean).view(3, 1) / std
        out = _empty(crops.shape, self.dtype, crops.device)
        with torch.autocast(crops.device.type, enabled=False):
            if crops.device.type == "cpu":
                _in_blocks(crops, parameters, operations, scale, shift, out)
            else:
                scale, shift = (t.to(crops.device, non_blocking=True) for t in (scale, shift))
                x = everywhere(crops, parameters, operations)
                out.copy_((x * scale + shift).transpose(2, 3))
        return out.permute(0, 3, 1, 2)


def _empty(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory; on a CPU NumPy's, which asks the kernel for huge pages: touching a fresh batch page by page otherwise
    takes longer than writing it."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape.numel() * dtype.itemsize, np.uint8)).view(dtype).view(shape)
    return torch.empty(shape, dtype=dtype, device=device)


def _check(crops: Tensor, index: Tensor) -> None:
    if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[-1] != 3 or crops.shape[1] != crops.shape[2]:
        raise InputError(f"augmentation takes uint8 crops [n, S, S, 3], not {crops.dtype} {list(crops.shape)}")
    if index.shape != crops.shape[:1]:
        raise InputError(f"augmentation takes one index per crop, not {list(index.shape)} for {crops.shape[0]} crops")


# On an accelerator ----------------------------------------------------------------------------------------------------------------


def everywhere(crops: Tensor, p: Parameters, view: View) -> Tensor:
    """uint8 [n, S, S, 3] -> float32 [n, S, 3, S] in [0, 255]; no value is read back from the device."""
    if p.flip is not None:
        crops = torch.where(pixels.per_sample(p.flip), crops.flip(2), crops)
    x = crops.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    if p.degrees is not None:
        x = pixels.rotate(x, _mirrored(p.degrees, p.flip))
    if p.grayscale is not None and view.grayscale_first:
        x = torch.where(pixels.per_sample(p.grayscale), pixels.luma(x), x)
    if p.order is not None and p.factors is not None:
        for operation in p.order.unbind(1):
            due, before = pixels.per_sample(operation), x
            for which, run in JITTER.items():
                x = torch.where(due == which, run(before.clone(), p.factors[:, which], None), x)
    if p.grayscale is not None and not view.grayscale_first:
        x = torch.where(pixels.per_sample(p.grayscale), pixels.luma(x), x)
    if p.sigma is not None:
        x = pixels.blur(x, p.sigma, pixels.blur_radius(view.sigma[1], x.shape[1]))
    if p.solarize is not None:
        x = torch.where(pixels.per_sample(p.solarize), pixels.solarize_(x.clone()), x)
    return x


def _mirrored(degrees: Tensor, flip: Tensor | None) -> Tensor:
    """The flip runs first, on bytes, though the view puts it last: it commutes with all but the rotation, whose sense it turns."""
    return degrees if flip is None else torch.where(flip, -degrees, degrees)


# On a CPU -------------------------------------------------------------------------------------------------------------------------


def _in_blocks(crops: Tensor, p: Parameters, view: View, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """Augment into `out` [n, S, S, 3]. Each block holds samples of one jitter sequence, so that no operation runs for nothing."""
    limit = max(1, BLOCK_PIXELS // (crops.shape[1] * crops.shape[2]))
    sequences: dict[tuple[int, ...], list[int]] = {}
    for i, sequence in enumerate(_sequences(p, view, len(crops))):
        sequences.setdefault(sequence, []).append(i)
    blocks = [(s, rows[k : k + limit]) for s, rows in sequences.items() for k in range(0, len(rows), limit)]

    @torch.no_grad()
    def run(block: tuple[tuple[int, ...], list[int]]) -> None:
        sequence, rows = block
        x = _block(crops, p, view, sequence, rows).mul_(scale).add_(shift).transpose(2, 3)
        if len(rows) == 1:
            out[rows[0]].copy_(x[0])
        else:
            out[torch.tensor(rows)] = x.to(out.dtype)

    threads = min(torch.get_num_threads(), len(blocks))
    if threads <= 1:
        for block in blocks:
            run(block)
    else:
        for _ in _pool(threads).map(run, blocks):
            pass


def _sequences(p: Parameters, view: View, n: int) -> list[tuple[int, ...]]:
    """The jitter operations that each of n samples undergoes, first to last; operations of no strength are left out."""
    if p.order is None or p.factors is None or view.jitter is None:
        return [()] * n
    idle = {which for which, bounds in enumerate(view.jitter.ranges()) if bounds == (NO_JITTER[which],) * 2}
    untouched = (p.factors == torch.tensor(NO_JITTER)).all(1).tolist()
    orders = p.order.tolist()
    return [() if u else tuple(o for o in order if o not in idle) for u, order in zip(untouched, orders, strict=True)]


def _block(crops: Tensor, p: Parameters, view: View, sequence: tuple[int, ...], rows: list[int]) -> Tensor:
    """The samples `rows`, jittered by `sequence`: float32 [len(rows), S, 3, S] in [0, 255], valid until this thread's next block."""
    chosen = torch.tensor(rows)
    crops = crops[rows[0] : rows[0] + 1] if len(rows) == 1 else crops[chosen]
    own = Parameters(**{name: None if value is None else value[chosen] for name, value in vars(p).items()})
    if own.flip is not None and own.flip.any():
        crops = crops.flip(2) if own.flip.all() else torch.where(pixels.per_sample(own.flip), crops.flip(2), crops)
    x, work = _workspace(len(rows), crops.shape[1])
    x.copy_(crops.transpose(2, 3))
    if own.degrees is not None:
        x = pixels.rotate(x, _mirrored(own.degrees, own.flip))
    if own.grayscale is not None and view.grayscale_first:
        _each(x, own.grayscale, pixels.grey_, work)
    for which in sequence:
        assert own.factors is not None
        JITTER[which](x, own.factors[:, which], work)
    if own.grayscale is not None and not view.grayscale_first:
        _each(x, own.grayscale, pixels.grey_, work)
    if own.sigma is not None:
        radius = pixels.blur_radius(view.sigma[1], x.shape[1])
        for i, sigma in enumerate(own.sigma.tolist()):
            if sigma > 0:
                pixels.blur_one_(x[i], own.sigma[i : i + 1], radius, work)
    if own.solarize is not None:
        _each(x, own.solarize, pixels.solarize_, work)
    return x


def _each(x: Tensor, chosen: Tensor, operation: Callable[[Tensor, Tensor], Tensor], work: Tensor) -> None:
    """The operation, in place, on the chosen samples of x."""
    for i, yes in enumerate(chosen.tolist()):
        if yes:
            operation(x[i : i + 1], work[:, :1])


_own = threading.local()


def _workspace(n: int, size: int) -> tuple[Tensor, Tensor]:
    """This thread's memory for a block of n images: x [n, S, 3, S] and `work` of moco.data.pixels [5, n, S, S]. Kept from block to
    block, since memory that has just been used is in the cache and memory that is new costs page faults."""
    area = n * size * size
    memory: Tensor | None = getattr(_own, "memory", None)
    if memory is None or len(memory) < (3 + pixels.WORK_PLANES) * area:
        memory = _own.memory = torch.empty((3 + pixels.WORK_PLANES) * max(area, BLOCK_PIXELS))
    x, work = memory[: 3 * area], memory[3 * area : (3 + pixels.WORK_PLANES) * area]
    return x.view(n, size, 3, size), work.view(pixels.WORK_PLANES, n, size, size)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that each run their torch operations alone: a block is too small to share, blocks are many.

    torch's thread count belongs to the thread that sets it, and is also what threads started later begin with; so set it in
    each worker, then set the caller's again.
    """
    here = torch.get_num_threads()
    started = threading.Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, "augment", initializer=lambda: torch.set_num_threads(1))
    for _ in range(threads):
        pool.submit(started.wait)
    started.wait()
    torch.set_num_threads(here)
    return pool
