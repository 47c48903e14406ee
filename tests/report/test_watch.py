"""The report that is written again while runs go on, the lines at its top, and its sentence without matplotlib."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moco.report import __main__ as report
from moco.report.page import findings
from moco.report.runs import UNFINISHED, read
from tests.report.made_runs import run, sweep


def finish(folder: Path, spare: Path) -> None:
    (folder / "log.jsonl").write_text((run(spare) / "log.jsonl").read_text())


def test_it_is_written_again_when_a_log_has_grown_until_the_run_is_done(tmp_path: Path) -> None:
    folder, states, pauses = run(tmp_path / "a", epochs=1), [], []

    def write() -> list[report.Encoder]:
        encoders = read([folder])
        states.append(encoders[0].state)
        return encoders

    def pause() -> None:
        pauses.append(len(states))
        if len(pauses) == 3:  # two pauses without news write nothing
            finish(folder, tmp_path / "spare")

    report.watch([folder], write, pause)
    assert states == [UNFINISHED, "done"]
    assert pauses == [1, 1, 1]


def test_news_during_the_writing_is_not_missed(tmp_path: Path) -> None:
    folder, states = run(tmp_path / "a", epochs=1), []

    def write() -> list[report.Encoder]:
        encoders = read([folder])
        states.append(encoders[0].state)
        if len(states) == 1:
            finish(folder, tmp_path / "spare")
        return encoders

    report.watch([folder], write, lambda: pytest.fail("there was news already"))
    assert states == [UNFINISHED, "done"]


def test_the_page_of_a_run_that_goes_on_loads_itself_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = run(tmp_path / "a", epochs=1), tmp_path / "out"
    seen = []

    def pause(seconds: float) -> None:
        seen.append((seconds, 'http-equiv="refresh" content="7"' in (out / "index.html").read_text()))
        finish(folder, tmp_path / "spare")

    monkeypatch.setattr(report.time, "sleep", pause)
    assert report.main([str(folder), "--output", str(out), "--watch", "7"]) == 0
    assert seen == [(7.0, True)]
    assert 'http-equiv="refresh"' not in (out / "index.html").read_text()


def test_three_lines_say_what_was_found(tmp_path: Path) -> None:
    elements = {
        name: {"probe": top1, "alignment": alignment, "uniformity": -2.0, "moco_t": 0.1 + alignment}
        for name, top1, alignment in (("a", 70, 0.5), ("b", 90, 0.1), ("c", 60, 0.7), ("d", 80, 0.3), ("e", 50, 0.9))
    }
    elements["fallen"] = {"probe": 10.0, "alignment": 0.0, "uniformity": 0.0}
    first, second, third = findings(read([sweep(tmp_path / "s", elements)]))
    assert first == "6 of 6 runs are measured and comparable; 1 collapsed."
    assert second == "Highest linear top-1 [%]: 90 (b); lowest: 10 (fallen)."
    assert third.startswith("Alignment + uniformity and accuracy, without collapsed ones: ρ = −1.00 (")
    lines = findings(read([run(tmp_path / "one", epochs=1)]))
    assert lines[0].startswith("0 of 1") and lines[1] == "No run has an accuracy yet." and "0 of the 5" in lines[2]


def test_without_matplotlib_one_sentence_names_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None\nfrom moco.report.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code]
    assert subprocess.run([*command, "--help"], capture_output=True).returncode == 0
    done = subprocess.run([*command, str(run(tmp_path / "a"))], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "pip install matplotlib" in done.stderr
