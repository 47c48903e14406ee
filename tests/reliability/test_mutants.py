"""The list of mutants names text that exists, so that `mutants.py` changes what it says it changes."""

from __future__ import annotations

import pytest

from tests.reliability.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_the_text_of_a_mutant_exists(number: int) -> None:
    path, old, new, tests = MUTANTS[number]
    assert old in (ROOT / path).read_text(), f"{path} has no {old!r}"
    assert old != new
    assert all((ROOT / word.partition("::")[0]).exists() for word in tests.split() if word.startswith("tests/")), tests
