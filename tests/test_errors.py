"""Exceptions become one line and an exit code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from moco.errors import (
    EXIT_INPUT,
    EXIT_NUMERICS,
    EXIT_OK,
    EXIT_PREEMPTED,
    EXIT_RANK,
    InputError,
    NumericsError,
    RankError,
    SampleError,
    exit_code,
)


def failing(error: BaseException) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


def test_codes_are_what_scripts_rely_on() -> None:
    assert (EXIT_OK, EXIT_RANK, EXIT_INPUT, EXIT_NUMERICS, EXIT_PREEMPTED) == (0, 1, 2, 3, 75)
    assert exit_code(lambda: 0) == 0 and exit_code(lambda: EXIT_PREEMPTED) == 75


@pytest.mark.parametrize(
    ("error", "code", "on_rank_0", "on_rank_1"),
    [
        (InputError("no folder"), 2, "error: no folder\n", ""),
        (NumericsError("step 3"), 3, "error: step 3\n", ""),
        (SampleError("a.png"), 2, "error: a.png\n", "error: a.png\n"),  # only one rank knows
        (RankError("rank 2"), 1, "error (seen by rank 0): rank 2\n", "error (seen by rank 1): rank 2\n"),
    ],
)
def test_one_line_and_a_code(
    error: Exception,
    code: int,
    on_rank_0: str,
    on_rank_1: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for rank, told in (("0", on_rank_0), ("1", on_rank_1)):
        monkeypatch.setenv("RANK", rank)
        assert exit_code(failing(error)) == code
        assert capsys.readouterr() == ("", told)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_bugs_keep_their_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)):
        exit_code(failing(error))
