"""torch.cuda without a driver: devices, streams and events that only keep what is asked of them.

Installed for the whole process, which does nothing else. Contexts are modelled as CUDA makes them: setting a device
makes one there; leaving `torch.cuda.device` goes back only to a device that has one, leaving `torch.cuda.stream` sets
the device of before whether it has one or not.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch._subclasses.fake_tensor as fake_tensor

from tests.gpu.pretended.shim import driver

contexts: set[int] = set()  # devices on which this process has made a context
_streams = threading.local()  # .current: of this thread
on_wait: list[Callable[[str], Any]] = []  # told of each wait for the device


def current_device() -> int:
    return driver.pretended_current_device()


def set_device(device: Any) -> None:
    index = _index(device)
    driver.pretended_set_device(index)
    contexts.add(index)


def on_side_stream() -> bool:
    return getattr(_streams, "current", None) is not None


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return current_device() if index is None else index


class Stream:
    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device = torch.device("cuda", _index("cuda" if device is None else device))

    def synchronize(self) -> None:
        _wait("Stream.synchronize")

    def wait_event(self, event: Any) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        return Event()


class Event:
    def __init__(self, **_: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None:
        _wait("Event.synchronize")

    def elapsed_time(self, end: Any) -> float:
        return 1.0

    def query(self) -> bool:
        return True


def _wait(kind: str) -> None:
    for listener in on_wait:
        listener(kind)


@contextlib.contextmanager
def device(wanted: Any) -> Iterator[None]:
    before = current_device()
    set_device(wanted)
    try:
        yield
    finally:
        if before in contexts:
            driver.pretended_set_device(before)


@contextlib.contextmanager
def stream(wanted: Stream) -> Iterator[None]:
    before, outer = current_device(), getattr(_streams, "current", None)
    set_device(wanted.device)
    _streams.current = wanted
    try:
        yield
    finally:
        _streams.current = outer
        set_device(before)


def install() -> None:
    fixed: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 8, "_lazy_init": None,
        "is_current_stream_capturing": False, "max_memory_allocated": 2**20, "memory_allocated": 0,
        "manual_seed_all": None, "manual_seed": None, "set_rng_state": None, "empty_cache": None,
        "reset_peak_memory_stats": None,
        "get_device_name": "pretended GPU", "get_device_capability": (9, 0), "set_sync_debug_mode": None,
        "get_device_properties": SimpleNamespace(name="pretended GPU", major=9, minor=0, multi_processor_count=132),
    }  # fmt: skip
    for name, answer in fixed.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.synchronize = lambda *_: _wait("torch.cuda.synchronize")
    torch.cuda.current_device, torch.cuda.set_device = current_device, set_device
    torch.cuda.device, torch.cuda.stream = device, stream  # type: ignore[assignment, misc]
    torch.cuda.Stream, torch.cuda.Event = Stream, Event  # type: ignore[assignment, misc]
    torch.cuda.current_stream = lambda of=None: getattr(_streams, "current", None) or Stream(of)  # type: ignore[assignment]
    torch.cuda.default_stream = Stream  # type: ignore[assignment]
    torch.Tensor.record_stream = lambda self, of: None  # type: ignore[assignment]  # it takes streams of C++ alone
    profile, on_host = torch.profiler.profile, [torch.profiler.ProfilerActivity.CPU]  # CUPTI hangs without a driver
    torch.profiler.profile = lambda activities, **how: profile(activities=on_host, **how)  # type: ignore[assignment, misc]
    fake_tensor.init_gpu_context = lambda _: None
    # these lists decide whether foreach and fused kernels are taken, and know real tensors only
    for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
        importlib.import_module(module)._foreach_supported_types.append(fake_tensor.FakeTensor)
