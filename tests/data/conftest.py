"""Made-up photographs: smooth colours with some texture, so that JPEG and resizing do to them what they do to real
ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moco  # noqa: F401 - before torchvision, which it makes importable beside a CPU build of torch

Photo = Callable[..., Image.Image]


def make_photo(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    texture = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray((smooth + texture).clip(0, 255).astype(np.uint8))


@pytest.fixture
def photo() -> Photo:
    return make_photo


@pytest.fixture(scope="session")
def _tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split, per_class in (("train", 8), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                seed = 100 * label + i + 1000 * (split == "val")
                image = make_photo(seed, width=70 + 9 * i, height=110 - 7 * i)
                image.save(folder / f"{i}.jpg", quality=92)
    return root


@pytest.fixture
def tree(_tree: Path, tmp_path: Path) -> Path:
    """train/ and val/ with 3 classes of 8 and 3 JPEGs, of various sizes around 100 px. A copy: a test may damage it."""
    return Path(shutil.copytree(_tree, tmp_path / "photos"))


@pytest.fixture(scope="session")
def shared_tree(_tree: Path) -> Path:
    """The same for tests that only read."""
    return _tree
