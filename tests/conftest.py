"""Settings for all tests: those marked `gpu` are skipped without one, and hypothesis does not judge by the clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import moco  # noqa: F401  # makes torchvision importable beside a CPU build of torch, also for tests that import it first

# Processes that tests start import this tree, also where .venv is shared with another checkout.
ROOT = str(Path(__file__).resolve().parent.parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))

# No deadline: on a machine with busy cores one slow example is no failure. derandomize: a test run is repeatable.
settings.register_profile("moco", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("moco")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
