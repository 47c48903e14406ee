"""The study of encoders: rows of a sweep that was run in parts come back as the encoders they were."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import encoder_study, kept_encoders
from moco.errors import InputError
from moco.report.comparison import DEFAULTS, tip
from moco.report.runs import DONE, PROBE, read
from tests.report.made_runs import sweep


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    elements = {
        f"e{i}": {
            "uniformity": -1.0 - i / 4,
            "alignment": 0.3 + i / 50,
            "knn": 60.0 + i,
            "probe": 70.0 + i,
            "lr": i + 1.0,
        }
        for i in range(7)
    }
    return sweep(tmp_path / "sweep", elements)


def test_a_row_holds_what_the_figure_and_the_table_need(parts: Path) -> None:
    for one in read([parts]):
        again = kept_encoders.encoder(kept_encoders.row(one, DEFAULTS), DEFAULTS)
        assert (again.name, again.state, again.measured, again.commits) == (
            one.name,
            one.state,
            one.measured,
            one.commits,
        )
        assert tip(again) == tip(one)


def test_parts_add_up_and_a_newer_row_replaces(parts: Path) -> None:
    rows = [kept_encoders.row(one, DEFAULTS) for one in read([parts])]
    newer = rows[2] | {"measured": {PROBE: 1.0}}
    found = kept_encoders.merged(rows[:4], [newer, *rows[4:]])
    assert [kept["name"] for kept in found] == sorted(kept["name"] for kept in rows)
    assert [kept["measured"] for kept in found if kept["name"] == newer["name"]] == [{PROBE: 1.0}]


def test_a_row_holds_nothing_of_the_machine_that_trained(parts: Path) -> None:
    for one in read([parts]):
        options = one.options | {"output_dir": "/home/me/run", "config": "/home/me/run.yaml", "data": "/home/me/photos"}
        row = kept_encoders.row(dataclasses.replace(one, options=options), encoder_study.DEFAULTS)
        assert row["options"] and "/home/me" not in json.dumps(row)


def test_parts_of_two_commits_are_refused(parts: Path) -> None:
    one, two, *_ = [kept_encoders.row(one, DEFAULTS) for one in read([parts])]
    with pytest.raises(InputError, match="of the commits abc, def"):
        kept_encoders.merged([one | {"commits": ["abc"]}], [two | {"commits": ["def"]}])


def test_page_file_and_figure_of_a_part(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    readme = tmp_path / "readme.md"
    for path, name in ((page, "PAGE"), (readme, "README")):
        path.write_text("<!-- cifar10-encoders -->\n<!-- end -->\n")
        monkeypatch.setattr(encoder_study, name, path)
    monkeypatch.setattr(encoder_study, "FILE", tmp_path / "rows.json")
    monkeypatch.setattr(encoder_study, "FIGURE", tmp_path / "figure.png")
    monkeypatch.setattr("sys.argv", ["encoder_study", str(parts)])
    ended = [one for one in read([parts]) if one.state == DONE]
    assert encoder_study.main() == 0
    line = f"| without the collapsed | {len(ended)} | alignment + uniformity |"
    assert line in page.read_text()
    assert line in readme.read_text()
    assert (tmp_path / "figure.png").stat().st_size > 1000
