"""The quickstart from end to end, cut to two epochs: it runs, and leaves behind what it says it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples import quickstart

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_quickstart_leaves_table_figure_checkpoints_and_logs(tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    command = [
        sys.executable,
        "examples/quickstart.py",
        "--epochs",
        "2",
        "--probe-epochs",
        "5",
        "--output-dir",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = (out / "results.md").read_text()
    assert table in done.stdout
    results = json.loads((out / "results.json").read_text())["results"]
    assert list(results) == ["untrained", "InfoNCE", "align + uniform"]
    for name, row in results.items():
        assert name in table
        assert Path(row["checkpoint"]).exists()
        # chance is 10; two epochs are too few to say more
        assert all(20 < row[kind] <= 100 for kind in ("knn", "linear", "few_label"))
    for head in ("infonce", "align-uniform"):
        assert str(out / head / "log.jsonl") in done.stdout
        assert (out / head / "log.jsonl").exists()
    with Image.open(out / "quickstart.png") as picture:
        assert picture.width > 1000


def test_figures_are_placed_in_the_range_of_the_seeds() -> None:
    ranges = {"seeds": [0, 1], "results": {"InfoNCE": {"knn": [97, 96], "linear": [98, 97], "few_label": [90, 88]}}}
    lines = quickstart.placed({"InfoNCE": {"knn": 95.9, "linear": 97.5, "few_label": 90.1}}, ranges)
    assert "2 seeds" in lines[0]
    assert [line.split("  ", 1)[1].strip() for line in lines[1:]] == [
        "kNN                  95.9  below the range 96.0 to 97.0",
        "linear               97.5  in the range 97.0 to 98.0",
        "5 labels per class   90.1  above the range 88.0 to 90.0",
    ]
    lines = quickstart.placed({"InfoNCE": {"knn": 97.04, "linear": 96.96, "few_label": 87.96}}, ranges)
    assert all("in the range" in line for line in lines[1:])


def test_measured_ranges_hold_what_the_quickstart_prints() -> None:
    ranges = json.loads(quickstart.RANGES.read_text())
    assert len(ranges["seeds"]) >= 5
    for values in ranges["results"].values():
        assert all(len(values[measure]) == len(ranges["seeds"]) for measure in quickstart.MEASURES)


def test_a_failing_command_ends_it_with_the_same_code() -> None:
    with pytest.raises(SystemExit) as ended:
        quickstart.run("python -c 'raise SystemExit(3)'")
    assert ended.value.code == 3


def test_programs_are_those_of_this_environment(capfd: pytest.CaptureFixture[str]) -> None:
    quickstart.run("python -c 'import sys, os; print(sys.prefix, os.environ[\"OMP_NUM_THREADS\"])'")
    assert f"{sys.prefix} 1" in capfd.readouterr().out
