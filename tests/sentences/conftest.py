"""A text and a run's settings, small enough for seconds."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.sentences.material import write_text

SETTINGS = shlex.split("""--layout lines --embedding 6 --hidden 5 -b 20 --seed 3 -p 2 --lr 0.01 --deterministic
    --no-tensorboard --device cpu --held-out 20""")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 220)


@pytest.fixture
def argv(text: Path) -> list[str]:
    """10 steps an epoch, 20 sentences held out."""
    return [str(text), *SETTINGS, "--epochs", "2"]
