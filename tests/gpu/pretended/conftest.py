"""Fixtures of the checks, which run in a process of their own: see tests/gpu/test_pretended.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gpu.pretended import trainer


@pytest.fixture(autouse=True)
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        trainer.prepare(patch)
        yield patch
