"""A loader thread leaves no context on a GPU of another rank; indices travel from pinned memory. No GPU needed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from moco.data.loader import Loader, _Filling
from moco.data.sampler import Sampler
from moco.data.source import ArraySource
from moco.probe.training import Cached

RANK_3 = torch.device("cuda", 3)


class Driver(threading.local):
    """The current device of a thread, as CUDA keeps it: each thread begins at device 0.

    Setting a device with cudaSetDevice makes a context there. Leaving torch.cuda.stream sets the device of before;
    leaving torch.cuda.device does so only where a context exists already.
    """

    contexts: ClassVar[set[int]] = set()  # of the process

    def __init__(self) -> None:
        self.current = 0

    def set(self, index: int) -> None:
        self.current = index
        self.contexts.add(index)

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before = self.current
        self.set(device.index)
        yield
        if before in self.contexts:
            self.current = before

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before = self.current
        self.set(stream.device.index)
        yield
        self.set(before)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    driver.contexts.clear()
    monkeypatch.setattr(torch.cuda, "device", driver.device)
    monkeypatch.setattr(torch.cuda, "stream", driver.stream)
    return driver


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """(from pinned memory, non-blocking) of each copy to a GPU."""
    pinned: list[Tensor] = []
    seen: list[tuple[bool, bool]] = []
    real = Tensor.to

    def pin(x: Tensor) -> Tensor:
        pinned.append(x.clone())
        return pinned[-1]

    def to(x: Tensor, *where: Any, non_blocking: bool = False, **how: Any) -> Tensor:
        if where and isinstance(where[0], torch.device) and where[0].type == "cuda":
            seen.append((any(x is held for held in pinned), non_blocking))
            return x
        return real(x, *where, non_blocking=non_blocking, **how)

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    return seen


def test_a_loader_thread_makes_no_context_on_gpu_0(driver: Driver, copies: list[tuple[bool, bool]]) -> None:
    source = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int64), ["x"], "test")
    loader = Loader(source, Sampler(2, 2, 0), size=8, workers=1)
    filling = _Filling(loader, 0, np.arange(2))
    loader.device = RANK_3
    loader._side_stream = SimpleNamespace(device=RANK_3, record_event=lambda: None)  # type: ignore[assignment]
    thread = threading.Thread(target=filling.fill, args=(range(2),))
    thread.start()
    thread.join()
    assert filling.errors == {} and len(copies) == 3
    assert driver.contexts == {3}


def test_the_model_of_the_driver_sees_the_fault(driver: Driver) -> None:
    with torch.cuda.stream(SimpleNamespace(device=RANK_3)):  # type: ignore[arg-type]
        pass
    assert driver.contexts == {0, 3}


def test_cached_probe_sends_indices_from_pinned_memory(copies: list[tuple[bool, bool]]) -> None:
    features = SimpleNamespace(device=RANK_3)
    stream = Cached(features, torch.zeros(6), Sampler(6, 2, 0))  # type: ignore[arg-type]
    assert len(list(stream.epoch(0))) == 3
    assert copies == [(True, True)] * 3
