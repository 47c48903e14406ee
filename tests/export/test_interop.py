"""The trials of benchmarks/interop.py: every format, both ways, with the foreign library itself where it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.interop import TRIALS, Trial, outcome
from moco.errors import InputError
from moco.export.__main__ import TOLERANCE


@pytest.mark.filterwarnings("ignore")  # other libraries' deprecations
@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: f"{trial.name}, {trial.direction}")
def test_features_survive(trial: Trial, tmp_path: Path) -> None:
    if missing := trial.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    if trial.refused:
        with pytest.raises(InputError, match=trial.refused):
            trial.run(tmp_path)
        return
    verified_by, difference = trial.run(tmp_path)
    assert difference <= TOLERANCE
    assert verified_by


def test_a_row_names_what_is_not_installed() -> None:
    row = outcome(Trial("x", "in", lambda folder: ("", 0.0), ("no_such_library",)))
    assert row == "not verified here: no_such_library not installed | –"


def test_the_page_has_every_row() -> None:
    page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text()
    for trial in TRIALS:
        assert f"| {trial.name} | {trial.direction} | " in page
    assert "not installed" not in page  # it was written where everything is
