"""Every benchmark runs, in tiny; what they conclude from times is right; the page shows what the files hold."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import (
    communication,
    depth_probe,
    loader_threads,
    loss_head,
    measuring,
    momentum_update,
    multi_crop,
    performance_page,
    photographs,
    results_page,
    sentence_step,
    temperature_curve,
    training_step,
)
from benchmarks.measuring import Row, number, ratio
from moco.distributed.shuffle import RowShuffle
from moco.report.runs import Encoder
from tests.data.depth_material import write_pairs

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where results are written, for the length of a test."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize("script", [loss_head, training_step, momentum_update, sentence_step, photographs, multi_crop])
def test_runs_in_tiny(script: ModuleType, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--trial", "--rounds", "1"])
    assert "| what | against | measured | target | met |" in capsys.readouterr().out
    assert not list(results.iterdir()), "a trial is no result"
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="torch sees no GPU"):
            script.main(["--device", "cuda"])


def test_threads_that_load_run_in_tiny(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the lock is less than the whole; in the model all threads cut images."""
    pytest.importorskip("ffcv")
    loader_threads.main(["--trial", "--rounds", "1", "--threads", "2"])
    table = re.findall(r"\| ([^|]+): ([^|]+) \| [^|]+ \| ([\d.,e+]+)", capsys.readouterr().out)
    found = {(name, what): float(value.replace(",", "")) for name, what, value in table}
    assert len(found) == 12 and not list(results.iterdir())
    for name in ("folder", ".beton, jpg", ".beton, raw"):
        assert 0 < found[name, "of it under the lock, at most"] < found[name, "work for an image"]
        assert found[name, "images/s"] > 0


def test_several_ranks_run_in_tiny() -> None:
    words = "from benchmarks import communication, scaling; communication.main({0}); scaling.main({0})"
    done = subprocess.run(
        [sys.executable, "-c", words.format("['--trial', '--rounds', '1']")],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "counted at 2 ranks" in done.stdout and "2 x 1 thread" in done.stdout


def test_ratios_are_taken_within_a_round() -> None:
    """The machine is ten times slower in the second round: a ratio of medians would not see that it is 2 in each."""
    times = {"slow": [2.0, 20.0, 4.0], "fast": [1.0, 10.0, 2.0]}
    assert ratio(times, "slow", "fast") == 2 and ratio(times, "fast", "slow") == 0.5


def test_rows_say_whether_they_meet_their_target() -> None:
    assert Row("a", "b", 1.4, at_most=1.5).cells() == ["a", "b", "1.4 ×", "≤ 1.5 ×", "yes"]
    assert Row("a", "b", 1.6, at_most=1.5).cells()[4] == "**no**"
    assert Row("a", "b", 1.6, "%", at_least=1.5).cells()[2:] == ["1.6 %", "≥ 1.5 %", "yes"]
    assert Row("a", "b", 1.4, at_least=1.5).met is False
    assert Row("a", "b", 1.4).cells()[3:] == ["–", "–"]
    assert [number(x) for x in (0, 3.0, 0.03214, 12.345, 1234.5)] == ["0", "3", "0.0321", "12.3", "1,234"]


def test_a_result_goes_to_the_page(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = measuring.parser("Doc.").parse_args(["--rounds", "3"])
    measuring.report("loss_head", options, [Row("head", "products", 1.25, at_most=1.5)], seconds={"head": [0.5, 0.25]})
    record = json.loads((results / "loss_head-cpu.json").read_text())
    assert record["rows"][0]["value"] == 1.25 and record["seconds"]["head"] == [0.5, 0.25]
    assert {"machine", "commit", "cores", "rounds"} <= record.keys()
    page = "before\n<!-- loss_head-cpu -->\nold\n<!-- end -->\nbetween\n<!-- loss_head-cuda -->\n<!-- end -->\nafter\n"
    text = performance_page.filled(page, results)
    assert "old" not in text and "| head | products | 1.25 × | ≤ 1.5 × | yes |" in text
    assert "<!-- loss_head-cuda -->\nnot measured\n<!-- end -->" in text
    assert performance_page.filled(text, results) == text
    assert text.startswith("before\n") and text.endswith("after\n") and "\nbetween\n" in text


def test_the_page_is_what_the_files_give() -> None:
    page = performance_page.PAGE.read_text()
    assert performance_page.filled(page) == page, "python -m benchmarks.performance_page writes it anew"
    known = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert {topic.rpartition("-")[0] for _, topic in re.findall(r"(<!-- ([a-z_]+-\w+) -->)", page)} <= known


@pytest.mark.parametrize("world", [2, 8, 64])
def test_the_model_of_the_traffic_is_that_of_the_shuffle(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that leave a rank, mean over ranks and permutations, against n·(world - 1)/world."""
    n, sent = 64, []
    for me in range(min(world, 8)):
        monkeypatch.setattr("moco.distributed.shuffle.rank", lambda me=me: me)
        for key in range(40 if world < 64 else 4):
            sizes = RowShuffle(key, [n] * world).send_sizes
            sent.append(sum(sizes) - sizes[me])
    modelled = communication.model(world, n, 10)
    assert modelled["images"] / (10 * 10 * 3) == pytest.approx(sum(sent) / len(sent), rel=0.05)
    assert modelled["images"] / modelled["images of the reference"] == pytest.approx(1 / (4 * world))


def test_what_a_temperature_curve_tells() -> None:
    """Two seeds of τ .1, one of .2 and 1; the values are checked by hand."""
    names = ("knn_top1", "lincls_top1", "val_alignment", "val_uniformity", "val_tolerance")
    rows = [(0.1, 40, 50, 0.2, -1.0, 0.5), (1, 30, 52, 0.4, -1.5, 0.3), (0.1, 44, 50, 0.2, -1.4, 0.5)]
    rows.append((0.2, 45, 51, 0.3, -2.0, 0.2))
    encoders = [Encoder(str(i), Path("x"), options={"loss": "hard", "moco_t": t}) for i, (t, *_) in enumerate(rows)]
    for encoder, (_, *values) in zip(encoders, rows, strict=True):
        encoder.measured = dict(zip(names, values, strict=True))
    curve = temperature_curve.points(encoders, "hard")
    assert [(row["moco_t"], row["seeds"], row["knn_top1"]) for row in curve] == [(0.1, 2, 42), (0.2, 1, 45), (1, 1, 30)]
    assert curve[0]["knn_top1_std"] == pytest.approx(8**0.5) and curve[1]["knn_top1_std"] is None
    found = temperature_curve.findings(curve)
    assert found["knn_top1"] == {"best_t": 0.2, "inside": True}
    assert found["lincls_top1"] == {"best_t": 1, "inside": False}
    uniformity = found["val_uniformity"]
    assert uniformity["lowest_at_t"] == 0.2 and uniformity["share_kept_at_the_largest_t"] == pytest.approx(0.75)
    assert uniformity["spearman_with_t"] == pytest.approx(-0.5)


def test_minutes_of_a_sweep_are_summed_where_all_are_known(tmp_path: Path) -> None:
    encoders = []
    for name, row in (("a", {"seconds": 90, "cpu_seconds": 200}), ("b", {"seconds": 150, "cpu_seconds": 100})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "row.json").write_text(json.dumps(row))
        encoders.append(Encoder(name, tmp_path / name / "pretrain"))
    told = " Sums over 2 elements: 4 minutes by the clock, 5 minutes of processor time."
    assert results_page.minutes_of(encoders) == told
    (tmp_path / "b" / "row.json").write_text('{"seconds": 150}')  # of an older version
    assert results_page.minutes_of(encoders) == " Sums over 2 elements: 4 minutes by the clock."
    (tmp_path / "b" / "row.json").unlink()
    assert results_page.minutes_of(encoders) == ""


def test_depth_of_trained_and_untrained_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last fifth is measured, no run is repeated, and the table has the mean over seeds."""
    frames = write_pairs(tmp_path / "frames", 35, 0)
    page = tmp_path / "results.md"
    page.write_text("<!-- depth -->\n<!-- end -->\n")
    monkeypatch.setattr(depth_probe, "PAGE", page)
    monkeypatch.setattr(depth_probe, "RESULTS", tmp_path)
    words = "--epochs 1 --predictor-epochs 1 --seeds 2 --output-dir"
    monkeypatch.setattr(sys, "argv", ["depth_probe", str(frames), *words.split(), str(tmp_path / "out")])
    assert depth_probe.main() == 0
    splits = [tmp_path / "out" / "frames" / split for split in ("train", "val")]
    names = [sorted(path.name[:6] for path in split.glob("*.depth.png")) for split in splits]
    assert names == [[f"{i:06d}" for i in range(28)], [f"{i:06d}" for i in range(30, 35)]]
    found = json.loads((tmp_path / "depth.json").read_text())
    means = {kind: sum(one["depth_mse"] for one in found[kind]) / 2 for kind in ("trained", "untrained")}
    told = page.read_text()
    assert all(f"| {kind} | 2 | {mean:.3f} ± " in told for kind, mean in means.items())
    assert "28 frames train, 5 are measured. Measured at commit" in told
    monkeypatch.setattr(depth_probe, "depth", None)  # would fail if a predictor were trained again
    assert depth_probe.main() == 0 and page.read_text() == told
