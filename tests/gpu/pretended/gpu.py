"""A GPU without values: tensors of cuda:N are torch's FakeTensors, tensors of the host are real.

A program runs on it as it is: `with Gpu(torch.device("cuda", 3)) as gpu: main([...])`. Numbers that are
read back are made up. Written down are
  faults  what must never be: a tensor of another device, a copy said to be non-blocking from memory that is not pinned,
          fused kernels given unequal layouts. A tensor of the host that meets one of the GPU raises, as on a GPU.
  nondeterministic  operations that have no deterministic kernel, which --deterministic would refuse;
  waits   where the host waits for the device: numbers read, shapes that depend on values, blocking copies.
Not seen: wrong values, races between streams, how long anything takes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.gpu.pretended import stand_ins
from tests.gpu.pretended.missing_kernels import KERNELS, keeps_channels_last
from tests.gpu.pretended.nondeterministic import without_deterministic_kernel

ROOT = Path(__file__).resolve().parents[3]
OWN = f"{ROOT / 'moco'}{os.sep}"
Listener = Callable[[Any, Any, Any, Any], Any]  # (operation, args, kwargs, result)

stand_ins.install()
_save = torch.save


class Gpu(TorchDispatchMode):
    """The GPU of a process, `device`. Threads that are started meanwhile see it too."""

    current: Gpu

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.faults: list[str] = []
        self.waits: list[str] = []
        self.nondeterministic: list[str] = []
        self.listeners: list[Listener] = []  # called after each operation on the device
        self._fake = _FakeMode(allow_non_fake_inputs=False)
        self._lock = threading.RLock()  # FakeTensorMode is not made for several threads

    def __enter__(self) -> Gpu:
        stand_ins.contexts.clear()
        stand_ins.set_device(self.device)
        stand_ins.on_wait.append(self.wait)
        self._run_thread = threading.Thread.run
        torch.save = self._save
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") shows its copy
        run = self._run_thread

        def run_on_gpu(thread: threading.Thread) -> None:
            with _InThread(self):
                run(thread)

        threading.Thread.run = run_on_gpu  # type: ignore[method-assign]
        super().__enter__()
        Gpu.current = self
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        threading.Thread.run = self._run_thread  # type: ignore[method-assign]
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        stand_ins.on_wait.remove(self.wait)
        torch.save = _save
        others = stand_ins.contexts - {self.device.index}
        if others:
            self.faults.append(f"a context on device {sorted(others)} in the process of {self.device}")

    def wait(self, what: str) -> None:
        self.waits.append(f"{what} at {place()}")

    def fault(self, what: str) -> None:
        self.faults.append(f"{what} at {place()}")

    def _save(self, state: Any, *where: Any, **how: Any) -> None:
        """torch.save, which copies what is on the GPU, and waits for it."""
        if any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(state)):
            self.wait("torch.save")
        _save(tree_map(lambda x: to_host(x) if isinstance(x, FakeTensor) else x, state), *where, **how)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        wanted = kwargs.get("device")
        on_host = not (wanted and torch.device(wanted).type == "cuda")
        if on_host and not any(isinstance(x, FakeTensor) for x in tensors_in(args, kwargs.values())):
            return func(*args, **kwargs)
        if wanted and torch.device(wanted) == torch.device("cuda"):  # else FakeTensorMode remembers another thread's
            kwargs = {**kwargs, "device": torch.device("cuda", stand_ins.current_device())}
        name = func._schema.name.removeprefix("aten::")
        if without_deterministic_kernel(name, args, kwargs):
            self.nondeterministic.append(f"{name} at {place()}")
        with self._lock:
            out = self._on_device(func, name, args, kwargs)
            for x in tensors_in((out,)):
                if isinstance(x, FakeTensor) and x.fake_device != self.device:
                    self.fault(f"a tensor on {x.fake_device} ({name}) in the process of {self.device}")
            for listener in self.listeners:
                listener(func, args, kwargs, out)
        return out

    def _on_device(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "copy_":
            self._check_copy(args[1], args[0], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if args[0].device.type == "cpu":
                return args[0].fill_(made_up_value(args[0].dtype))
        if name == "_local_scalar_dense":
            self.wait(".item()")
            return made_up_value(args[0].dtype)
        if masks(name, args):
            self.wait(f"{name} by a mask")
            return self._made_up(func, args, kwargs)
        pinned = kwargs.get("pin_memory")
        if pinned:
            kwargs = {**kwargs, "pin_memory": False}  # FakeTensorMode knows no such memory
        if not all(isinstance(x, FakeTensor) for x in tensors_in(args, kwargs.values())):
            args, kwargs = self._faked((args, kwargs))
        try:
            with self._fake:
                out = KERNELS[name](self, *args, **kwargs) if name in KERNELS else func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self.wait(f"{name}, whose shape or value is that of data")
            return self._made_up(func, args, kwargs)
        out = keeps_channels_last(name, args, out)
        if any(isinstance(x, FakeTensor) and x.fake_device.type == "cpu" for x in tensors_in((out,))):
            out = tree_map(lambda x: to_host(x, pinned) if isinstance(x, FakeTensor) else x, out)
        if name == "_to_copy":
            self._check_copy(args[0], out, kwargs.get("non_blocking", False))
        return out

    def _check_copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        ends = {source.device.type, target.device.type}
        if ends != {"cpu", "cuda"} or not source.numel():
            return
        what = f"copy of {list(source.shape)} from {source.device.type} to {target.device.type}"
        host = source if source.device.type == "cpu" else target
        pinned = getattr(host, "was_pinned", False) or (not isinstance(host, FakeTensor) and host.is_pinned())
        if not non_blocking:
            self.wait(f"blocking {what}")
        elif not pinned:
            self.fault(f"{what} said to be non-blocking, of memory that is not pinned")

    def _made_up(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result on made-up values: of a plausible shape."""
        with torch.utils._python_dispatch._disable_current_modes():
            args, kwargs = tree_map(lambda x: to_host(x) if isinstance(x, Tensor) else x, (args, kwargs))
            out = func(*args, **kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            return out
        with self._fake:
            return tree_map(
                lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=self.device)
                if isinstance(x, Tensor) else x,
                out,
            )  # fmt: skip

    def _faked(self, values: Any) -> Any:
        def fake(x: Any) -> Any:
            if not isinstance(x, Tensor) or isinstance(x, FakeTensor):
                return x
            there = self._fake.from_tensor(x.detach(), static_shapes=True)
            there.was_pinned = x.is_pinned()  # type: ignore[attr-defined]
            return there

        return tree_map(fake, values)


def tensors_in(*groups: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments and in lists of them; torch's tree_leaves takes ten times as long."""
    for group in groups:
        for value in group:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple)):
                yield from tensors_in(value)


class _FakeMode(FakeTensorMode):
    """FakeTensorMode for several threads, and for copy.deepcopy of its tensors.

    A FakeTensor says it is on "meta" while a kernel is looked up: here in the thread that does so alone.
    """

    def __init__(self, **how: Any) -> None:
        self._of_thread = threading.local()
        super().__init__(**how)

    def __deepcopy__(self, memo: Any) -> _FakeMode:
        return self

    @property
    def in_kernel_invocation(self) -> bool:
        return getattr(self._of_thread, "looking_up", False)

    @in_kernel_invocation.setter
    def in_kernel_invocation(self, looking_up: bool) -> None:
        self._of_thread.looking_up = looking_up


class _InThread(TorchDispatchMode):
    """The mode in a further thread: one mode object is entered in one thread only."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.__torch_dispatch__(func, types, args, kwargs)


def masks(name: str, args: Any) -> bool:
    """Whether an operation selects by a mask, which CUDA turns into positions by reading how many there are."""
    if name not in ("index", "index_put_", "_index_put_impl_", "index_put"):
        return False
    chosen = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    filled = name != "index" and args[2].numel() == 1 and args[2].device.type == "cpu"  # masked_fill, without a read
    return bool(chosen) and not filled


def to_host(x: Tensor, pinned: bool | None = False) -> Tensor:
    """Made-up values in the size and layout of x, in the host's memory."""
    with torch.utils._python_dispatch._disable_current_modes():
        strides = x.stride()
        out = torch.empty_strided(x.shape, strides, dtype=x.dtype, pin_memory=bool(pinned))
        return out.fill_(made_up_value(x.dtype))


def made_up_value(dtype: torch.dtype) -> float | bool | int:
    """True, 0 for an integer (a count of what went wrong, a position), else 1."""
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 0


def place() -> str:
    """The innermost line of this project that is running."""
    frame = sys._getframe()  # torch's and traceback's own ways read the files of all frames
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(OWN):
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
