"""What the tests of this folder share: the launcher, small data sets of each kind, and the tally behind the table."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.reliability.runs import Launcher

RESULTS = "MOCO_RELIABILITY_RESULTS"  # a file that each test adds lines to, for table.py


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set: 48 images to train on and 12 to validate, of odd sizes, in two classes."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for label in ("bright", "dark"):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                low = 100 if label == "bright" else 0
                pixels = noise.integers(low, low + 156, (20 + i % 5, 28 - i % 7, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def beton(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as an FFCV file."""
    pytest.importorskip("ffcv", reason="FFCV is not installed")
    from moco.data.beton.__main__ import main as beton_main

    path = tmp_path_factory.mktemp("beton") / "train.beton"
    assert beton_main(["write", str(images), str(path)]) == 0
    return path


class Tally:
    """Counts how often each fault was tried and survived."""

    def __init__(self) -> None:
        self.path = os.environ.get(RESULTS)

    def count(self, fault: str, tried: int, survived: int) -> None:
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps({"fault": fault, "tried": tried, "survived": survived}) + "\n")

    def drift(self, text: str) -> None:
        """A line for the page: what was measured where bit-identity is not promised."""
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps({"drift": text}) + "\n")

    @contextlib.contextmanager
    def __call__(self, fault: str) -> Iterator[Attempt]:
        """One attempt, survived if the block ends without an exception; `attempt.times` may be raised inside."""
        attempt, survived = Attempt(), False
        try:
            yield attempt
            survived = True
        finally:
            self.count(fault, attempt.times, attempt.times if survived else 0)


class Attempt:
    times = 1


@pytest.fixture(scope="session")
def tally() -> Tally:
    return Tally()
