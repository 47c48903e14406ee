"""Kernels and bytes of a training step, by stage, counted from what is dispatched to the GPU.

An operation is one kernel but for those in KERNELS_OF (read off ATen's CUDA sources, within about ten percent), and
reads its arguments and writes its results once: what stays in the caches is not known. BatchNorm reads its arguments
twice. Copies from the host are left out, and so is what torch.compile would fuse, but for split BatchNorm's
values and the log-sum-exp.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from moco.timing import OTHER, timeline
from tests.gpu.pretended import trainer
from tests.gpu.pretended.gpu import tensors_in

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias",
             "detach", "lift_fresh", "alias", "record_stream", "resize_"}  # fmt: skip
KERNELS_OF = {"logsumexp": 7, "sort": 4, "topk": 4, "convolution_backward": 2, "linalg_vector_norm": 1,
              "native_batch_norm": 1, "native_batch_norm_backward": 1}  # fmt: skip
# values follow statistics of the whole batch, which no cache holds until then
TWICE_READ = {"native_batch_norm", "native_batch_norm_backward"}
# read and written are the chosen rows, not the table they are in
ROWS_READ = {"index", "index_select", "gather", "embedding"}
ROWS_WRITTEN = {"index_copy_", "index_put_", "_index_put_impl_", "scatter_"}
WRITE_ONLY = {"copy_", "fill_", "zero_", "pretended::compiled"}
CATENATED = 128  # tensors of a launch
BLOCKS, CHUNK = 320, 65536  # of a multi-tensor kernel: blocks of a launch, elements of a block
TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # lists -> tensors of a launch


class Count:
    """A listener of a Gpu."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.operations: dict[str, Counter[str]] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name in NO_KERNEL or name.startswith(("prim::", "c10d::")):
            return
        if threading.current_thread().name.startswith("loader") or from_host(args):
            return
        stage = timeline._stack[-1] if timeline._stack else OTHER
        self.kernels[stage] += kernels(name, args)
        self.bytes[stage] += moved(func, name, args, kwargs, out)
        self.operations.setdefault(stage, Counter())[name] += 1


def from_host(args: Any) -> bool:
    return any(x.device.type == "cpu" and x.dim() for x in tensors_in(args))


def kernels(name: str, args: Any) -> int:
    if name.startswith(("_foreach", "_fused", "_amp_foreach")):
        return multi_tensor([list(a) for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)])
    if name == "pretended::compiled":
        return int(args[2])
    if name == "cat":
        return -(-len(args[0]) // CATENATED)
    return KERNELS_OF.get(name, 1)


def multi_tensor(lists: list[list[Tensor]]) -> int:
    """Launches of ATen's multi_tensor_apply: each takes so many tensors, and so many blocks."""
    most, launches, tensors, blocks = TENSORS.get(len(lists), 30), 0, 0, 0
    for x in lists[0]:
        tensors += 1
        for _ in range(-(-x.numel() // CHUNK)):
            blocks += 1
            if blocks == BLOCKS:
                launches, blocks, tensors = launches + 1, 0, 1
        if tensors == most and blocks:
            launches, blocks, tensors = launches + 1, 0, 0
    return launches + (blocks > 0)


def moved(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that an operation reads and writes."""
    results = {id(x): x for x in tensors_in((out,))}
    if name in ROWS_READ:
        return 2 * sum(size(x) for x in results.values())
    if name in ROWS_WRITTEN:
        return 2 * sum(size(x) for x in list(tensors_in(args[1:]))[-1:])
    written = {}
    for declared, value in zip(func._schema.arguments, args, strict=False):
        if declared.alias_info is not None and declared.alias_info.is_write:
            written.update({id(x): x for x in tensors_in((value,))})
    read = {id(x): x for x in tensors_in(args, kwargs.values()) if not (name in WRITE_ONLY and id(x) in written)}
    times = 2 if name in TWICE_READ else 1
    return times * sum(map(size, read.values())) + sum(map(size, {**results, **written}.values()))


def size(x: Tensor) -> int:
    """Bytes that are there: an expanded dimension is held once."""
    elements = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        elements *= length if stride else 1
    return elements * x.element_size() if x.numel() else 0


def count(
    words: str, folder: Path, world: int = 1, rank: int = 0, images: int = 256, augmentations: bool = True
) -> Count:
    """Counts the first step of main_moco.py with the options `words`, which neither prints nor saves."""
    counted = Count()
    with pytest.MonkeyPatch.context() as patch:
        trainer.prepare(patch, images=2 * images)
        if not augmentations:
            trainer.leave_augmentations_out(patch)
        with (
            trainer.on_gpu(patch, world, rank) as (gpu, _),
            trainer.steps_watched(gpu, patch, last=1, listeners=[counted]),
            pytest.raises(trainer.Enough),
        ):
            trainer.pretrain(f"-b {images} --epochs 1 --eval-freq 0 --print-freq 100 {words}", folder)
    return counted
