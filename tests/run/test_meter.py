"""Means over samples, not over batches; and the clock beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from moco import timing
from moco.run import meter as meters
from moco.run.meter import Clock, Meter

CPU = torch.device("cpu")
batches = st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5), min_size=1, max_size=6)


@given(batches=batches, cut=st.integers(0, 6))
def test_every_sample_weighs_the_same(batches: list[list[float]], cut: int) -> None:
    """Also over a save in between."""
    meter = Meter()
    for number, batch in enumerate(batches):
        if number == cut:
            saved, meter = meter.state(), Meter()
            meter.load(saved, CPU)
        values = torch.tensor(batch, dtype=torch.float64)
        meter.add({"a": values.mean(), "b": (values**2).mean().requires_grad_()}, len(batch))
    everything = [x for batch in batches for x in batch]
    read = meter.read()
    assert read["a"] == pytest.approx(sum(everything) / len(everything), abs=1e-9)
    assert read["b"] == pytest.approx(sum(x * x for x in everything) / len(everything), rel=1e-9, abs=1e-9)
    assert meter.read() == {}, "reading empties it"


def test_an_empty_meter_reads_nothing() -> None:
    meter = Meter()
    assert meter.read() == {} and meter.state() == {"sums": {}, "samples": 0}


def test_a_saved_state_does_not_change_any_more() -> None:
    meter = Meter()
    meter.add({"a": torch.tensor(1.0)}, 2)
    saved = meter.state()
    meter.add({"a": torch.tensor(7.0)}, 2)
    other = Meter()
    other.load(saved, CPU)
    assert other.read() == {"a": 1.0} and meter.read() == {"a": 4.0}


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a time of our own: 10 s, 4 of them waiting, for 3 steps of 64 images; 9 steps are left."""
    now = [100.0]
    time: Any = type("Time", (), {"perf_counter": staticmethod(lambda: now[0])})
    monkeypatch.setattr(meters, "time", time)
    monkeypatch.setattr(timing, "time", time)
    timing.timeline.start(CPU)
    clock = Clock()
    for waited in (1.0, 3.0, 0.0):
        with timing.stage("data wait"):
            now[0] += waited
        now[0] += 2
        clock.step(64)
    values = clock.lap(CPU, 9)
    assert values["images_per_s"] == pytest.approx(19.2)
    assert values["data_wait"] == pytest.approx(0.4)
    assert values["eta_s"] == pytest.approx(30)
    assert 0.01 < values["memory_gb"] < 1000
    now[0] += 5
    clock.step(10)
    assert clock.lap(CPU, 0)["images_per_s"] == pytest.approx(2)
    timing.timeline.running = False
