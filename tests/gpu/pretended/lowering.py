"""Kernels and bytes of a function as torch's compiler lowers it for an H100, without Triton or a GPU.

Inductor's own scheduler says which operations it fuses, and its own count says what each kernel reads and writes. No
code is generated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from moco.data.augment.on_device import everywhere
from moco.data.augment.parameters import MOST_DRAWS, PURPOSES
from moco.data.augment.recipes import View
from tests.gpu.pretended import stand_ins

H100 = DeviceProperties(
    type="cuda", index=0, multi_processor_count=132, cc=90, major=9, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32,
)  # fmt: skip

stand_ins.install()


@contextlib.contextmanager
def _on_an_h100() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceProperties, "create", lambda device: H100)
        patch.setattr(scheduler, "has_triton", lambda *_: True)
        yield


def lowered(function: Callable[..., Tensor], *arguments: Tensor) -> tuple[int, int]:
    """(kernels, bytes) of `function`; the arguments are of one FakeTensorMode, on cuda:0."""
    mode = torch._guards.detect_fake_mode(arguments)
    with _on_an_h100():
        graph_module = make_fx(function, decomposition_table=select_decomp_table())(*arguments)
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
        graph = GraphLowering(graph_module, example_inputs=arguments, shape_env=mode.shape_env, is_inference=True)
        with V.set_debug_handler(DebugContext()), V.set_graph_handler(graph), V.set_fake_mode(mode), torch.no_grad():
            graph.run(*arguments)
            graph._update_scheduler()
            read_and_written, _, _ = graph.count_bytes()
    kernels = [node for node in graph.scheduler.nodes if not isinstance(node, scheduler.NopKernelSchedulerNode)]
    return len(kernels), read_and_written


def augmentation(view: View, images: int, size: int = 224) -> tuple[int, int]:
    """(kernels, bytes) of one view: parameters, colours, blur, normalisation; uint8 crops to bfloat16 images."""
    gpu = {"device": "cuda:0"}
    with FakeTensorMode(shape_env=ShapeEnv()):
        shape, strides = (images, size, size, 3), (2 * size * size * 3, size * 3, 3, 1)  # one view of two
        crops = torch.empty_strided(shape, strides, dtype=torch.uint8, **gpu)
        index, keys, steps = (torch.empty(n, dtype=torch.long, **gpu) for n in (images, len(PURPOSES), MOST_DRAWS))
        scale, shift = torch.empty(3, **gpu), torch.empty(3, **gpu)

        def work(*tensors: Any) -> Tensor:
            return everywhere(*tensors, view, torch.bfloat16)

        return lowered(work, crops, index, keys, steps, scale, shift)
