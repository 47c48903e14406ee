"""The report: what is written, and what it refuses."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moco.report.__main__ import main
from tests.report.made_runs import run, sweep, write

HOSTILE = "<script>alert('x')</script>&\"quoted\""


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_and_figures_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elements = {
        str(i): {"probe": 70.0 + i, "alignment": 0.5 - i / 20, "moco_t": t}
        for i, t in enumerate((0.05, 0.1, 0.2, 0.5, 1))
    }
    elements["fallen"] = {"probe": 10.0, "uniformity": 0.0, "alignment": 0.0, "moco_t": 9.0}
    folder = sweep(tmp_path / "sweep", elements)
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "without collapsed ones: -1.00 (95% interval -1.00 to -1.00, n = 5)" in said
    assert "all comparable encoders: -1.00" in said and "n = 6)" in said
    measures = ("lincls_top1", "val_uniformity", "val_tolerance")
    names = ("alignment-uniformity", "knn", "way", "loss", "penalties", *(f"temperature-{name}" for name in measures))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", *(f"{name}.png" for name in names)}
    for name in ("index.html", *(f"{name}.png" for name in names)):
        assert (tmp_path / "out" / name).stat().st_size > 1000 and name in said
    text = (tmp_path / "out" / "index.html").read_text()
    assert "1 collapsed" in text and "collapsed: uniformity (t = 2) of the validation outputs above −0.1" in text
    assert "ρ = −1.00 (95% interval −1.00 to −1.00, n\u00a0=\u00a05)" in text
    tags = Tags(text).found
    assert len([1 for tag, a in tags if (a.get("class") or "") == "dot"]) == 6
    assert {(a.get("src") or a.get("href") or "#")[0] for _, a in tags} == {"#"}  # nothing is fetched
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_runs_without_labels_have_no_accuracy_and_no_tolerance(tmp_path: Path) -> None:
    for name, t in (("a", 0.1), ("b", 0.2)):
        log = run(tmp_path / name, moco_t=t) / "log.jsonl"
        records = [json.loads(line) for line in log.read_text().splitlines()]
        kept = [{k: v for k, v in record.items() if k not in ("knn_top1", "val_tolerance")} for record in records]
        log.write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count(">temperature τ<") == 1  # uniformity alone


def test_names_are_text(tmp_path: Path) -> None:
    """A name, an option and an error that try to be HTML are shown as they are, wherever they stand."""
    folder = sweep(tmp_path / "s", {"a": {"arch": HOSTILE}, "b": {"row": False}, "c": {"git": HOSTILE}}, HOSTILE)
    write(folder / "elements" / "b" / "failed.json", {"error": HOSTILE})
    mine = run(tmp_path / "<img src=x onerror=alert(1)>", dataset=HOSTILE)
    assert main([str(folder), str(mine), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    tags = Tags(text).found
    assert [tag for tag, _ in tags].count("script") == 1 and "img" not in dict(tags)
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "&lt;script&gt;alert(" in text


def test_a_row_without_numbers_says_why(tmp_path: Path) -> None:
    folders = [run(tmp_path / "whole"), run(tmp_path / "half", epochs=1, knn=12.345)]
    assert main([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    row = text[text.index('<tr class="marked" data-name="half"') :].split("</tr>")[0]
    assert "1 of 2 epochs" in row and "12.34" not in row
    assert row.count('data-value=""') == 6
    assert '<tr data-name="whole"' in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "neither a run nor a sweep in nowhere"),
        (["one", "--neighbours", "-3"], "argument --neighbours: -3 must be at least 0"),
        (["one", "--output", "curves.png"], "names a file"),
        (["one", "again/one"], "2 runs have the name one"),
    ],
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "one")
    run(tmp_path / "again" / "one")
    assert main(words) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.html")) and not list(tmp_path.glob("**/*.png"))
