"""Sweeps: what the files of launch/recipes mean, their elements, and what is told of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from launch import element, journal, options_file, spec, sweep
from moco.errors import EXIT_INPUT, InputError
from moco.report import comparison, runs
from moco.report.__main__ import main as report
from moco.run.files import write_json
from tests.data.depth_material import write_pairs
from tests.report import made_runs
from tests.sentences.material import write_classes, write_text

RECIPES = Path(__file__).resolve().parent.parent / "launch" / "recipes"
DIGITS = {"dataset": "digits", "arch": "smallcnn", "epochs": 1, "moco_k": 64, "moco_dim": 8, "seed": 0}


def read(tmp_path: Path, *parts: dict, **more: object) -> list[spec.Element]:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"set": DIGITS, "parts": list(parts), **more}))
    return spec.read(path, tmp_path / "out", [], 1).elements


RUNS = sorted({*RECIPES.glob("*.yaml")} - {*RECIPES.glob("sweep_*")})


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_recipes(path: Path) -> None:
    head = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    assert {"paper", "command", "hardware", "hours", "accuracy"} <= {line.partition(" ")[0] for line in head}
    options_file.pretraining(["--config", str(path), "photos"], 1)


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("sweep_digits", 44, []),
        ("sweep_imagenette", 21, ["photos"]),
        ("sweep_imagenet100", 45, ["photos"]),
        ("sweep_stl10", 304, []),
        ("sweep_nyu_depth", 64, ["nyu"]),
        ("sweep_bookcorpus", 108, ["text.txt", "--classify", "MR", "CR"]),
        ("sweep_imagenette_hard", 8, ["photos"]),
        ("sweep_cifar10_encoders", 48, ["photos"]),
        ("sweep_cifar10_tuning", 32, ["photos"]),
        ("sweep_cifar10_tuned", 10, ["photos"]),
        ("sweep_cifar10_methods", 12, ["photos"]),
        ("sweep_novels", 24, ["text.txt", "--classify", "MR", "CR"]),
    ],
)
def test_recipes_of_sweeps(name: str, count: int, words: list[str]) -> None:
    elements = spec.read(RECIPES / f"{name}.yaml", None, words, 1).elements
    assert len({element.id for element in elements}) == len(elements) == count


def test_elements_tell_how_all_of_them_differ(tmp_path: Path) -> None:
    """Whichever part says it, and if it was left at its default."""
    elements = read(
        tmp_path, {"set": {"loss": "infonce"}, "grid": {"moco_t": [0.07, 0.2]}}, {"set": {"loss": "align-uniform"}}
    )
    told = [{name: e.swept[name] for name in ("loss", "moco_t", "moco_unif_w")} for e in elements]
    assert told == [
        {"loss": "infonce", "moco_t": 0.07, "moco_unif_w": 0.0},
        {"loss": "infonce", "moco_t": 0.2, "moco_unif_w": 0.0},
        {"loss": "align-uniform", "moco_t": 0.07, "moco_unif_w": 1.0},
    ]
    assert "epochs" not in elements[0].swept


def test_an_element_is_known_by_its_results(tmp_path: Path) -> None:
    """A sweep that grows, or is written in another way, finds what it has done; another probe is another element."""
    part = {"grid": {"moco_t": [0.07, 0.2]}}
    (first, second) = (element.id for element in read(tmp_path, part))
    assert [e.id for e in read(tmp_path, {"grid": {"moco_t": [0.5, 0.2, 0.07]}})][1:] == [second, first]
    assert [e.id for e in read(tmp_path, {"set": {"workers": 1, "moco_t": 0.2}})] == [second]
    assert first not in {e.id for e in read(tmp_path, part, probe={"epochs": 3})}


def test_draws_are_the_same_each_time_and_a_longer_sweep_begins_alike(tmp_path: Path) -> None:
    def drawn(count: int, seed: int = 0) -> list[tuple[float, float]]:
        draw = {"moco_t": {"low": 0.05, "high": 1, "log": True}, "moco_unif_w": [0, 1, 2], "moco_contr_w": [0, 1]}
        elements = read(tmp_path, {"random": {"count": count, "seed": seed, "draw": draw}})
        return [(e.pretrain.moco_t, e.pretrain.moco_unif_w) for e in elements]

    assert drawn(6)[:4] == drawn(4)
    assert drawn(4, seed=1) != drawn(4)
    assert all(0.05 <= t <= 1 for t, _ in drawn(6))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"grid": {"moco_t": [-1]}}, "--moco-t"),
        ({"grid": {"no_such_option": [1]}}, "no_such_option"),
        ({"grid": {}, "random": {}}, "part 1 must hold `grid`, `random` or `encoders`"),
        ({"random": {"count": 3, "draw": {"seed": [0, 1]}}}, "fewer than 3 different"),
        ({"random": {"count": 1, "draw": {"lr": {"low": 1}}}}, "must be a list, or a range"),
        ({"random": {"count": 1, "draw": {"lr": {"low": "a", "high": 1}}}}, "range of numbers from low to high"),
        ({"random": {"count": 1, "draw": {"lr": {"low": 1, "high": 0.1}}}}, "range of numbers from low to high"),
        ({"random": {"count": 1, "draw": {"lr": {"low": 0, "high": 1, "log": True}}}}, "log: true of positive"),
        ({"random": {"count": 1, "draw": {"lr": []}}}, "must be a list, or a range"),
        ({"random": {"count": -2, "draw": {"seed": [0, 1]}}}, "a `count` of at least 1"),
        ({"random": {"count": 2}}, "under `draw` what to draw"),
        ({"grid": {"seed": 0}}, "list of values for seed, such as .0."),
        ({"grid": {"seed": []}}, "list of values for seed"),
        ({"grid": {"output_dir": ["a", "b"]}}, "a sweep sets output_dir itself"),
        ({"set": 5}, "`set` must hold options"),
        (7, "part 1 must hold"),
    ],
)
def test_nonsense_is_refused_before_anything_starts(tmp_path: Path, part: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        read(tmp_path, part)
    assert "moco-sweep-" not in str(refused.value)  # a file that nobody but the program knows


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"name": "../../x"}, "`name` names a folder"),
        ({"probe": {"pretrained": "x"}}, "a sweep sets pretrained itself"),
        ({"probe": {"foo": 1}}, "there is no option 'foo'"),
        ({"parts": []}, "must hold `parts`, a list of one or more"),
        ({"parts": 7}, "must hold `parts`, a list of one or more"),
        ({"else": 1}, "nothing else"),
        ({"program": "depth"}, "`program` must be images or sentences"),
        ({"program": "sentences", "probe": {"epochs": 1}}, "`probe` must be left out"),
    ],
)
def test_nonsense_beside_the_parts_is_refused_too(tmp_path: Path, more: dict, said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"set": DIGITS, "parts": [{"grid": {"seed": [0]}}], **more}))
    with pytest.raises(InputError, match=said):
        spec.read(path, None, [], 1)


def test_here_each_element_is_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With options for two, BatchNorm would be shuffled over ranks that are not there, and nobody would notice."""
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"set": DIGITS, "parts": [{"grid": {"moco_t": [0.1]}}]}))
    assert sweep.main([str(path), "--cluster", "local", "--tasks-per-node", "2", "--dry-run"]) == EXIT_INPUT
    assert "with one process, not with 2" in capsys.readouterr().err
    assert sweep.main([str(path), "--cluster", "local", "--dry-run"]) == 0


def test_sentence_encoders_are_swept_and_shown(tmp_path: Path) -> None:
    """Every element trains, is classified, and is a dot of the report's plane, coloured by its accuracy."""
    text = write_text(tmp_path / "text.txt", 120)
    write_classes(tmp_path / "MR", 20)
    settings = {"layout": "lines", "embedding": 4, "hidden": 3, "batch_size": 20, "held_out": 20, "device": "cpu"}
    settings |= {"folds": 2, "tensorboard": False, "seed": 0}
    parts = [{"grid": {"moco_t": [0.1, 1]}}, {"set": {"loss": "align-uniform"}}]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"program": "sentences", "set": settings, "parts": parts}))
    words = [str(text), "--classify", str(tmp_path / "MR")]
    (tmp_path / "out").mkdir()
    for place in sweep.prepare(spec.read(tmp_path / "s.yaml", tmp_path / "out", words, 1), tmp_path / "out"):
        element.Element(place, tmp_path)()
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(float(row["moco_contr_w"]), float(row["moco_t"])) for row in rows]
    assert found == [(1, 0.1), (1, 1), (0, 0.075)]
    assert all(0 < float(row["val_mr_acc1"]) < 100 and float(row["val_uniformity"]) < 0 for row in rows)
    assert all(float(row["cpu_seconds"]) > 0 for row in rows)
    encoders = runs.read([tmp_path / "out"])
    assert [one.measured["val_mr_acc1"] for one in encoders] == [float(row["val_mr_acc1"]) for row in rows]
    assert comparison.accuracy_measure(encoders) == runs.MR


def test_depth_encoders_are_swept_and_shown(tmp_path: Path) -> None:
    """Every element is probed for depth, and its error is a column of the table and the colour of its dot."""
    for split, count in (("train", 6), ("val", 3)):
        write_pairs(tmp_path / "nyu" / split, count, count)
    settings = {"dataset": "nyu-depth", "arch": "smallcnn", "image_size": 16, "epochs": 1, "batch_size": 3, "moco_k": 0}
    settings |= {"moco_dim": 8, "device": "cpu", "tensorboard": False, "seed": 0, "workers": 1}
    probe = {"features_from": "features.5", "epochs": 1, "schedule": [], "batch_size": 3}
    spec_ = {"set": settings, "probe": probe, "parts": [{"grid": {"moco_t": [0.1, 1]}}]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(spec_))
    words, out = [str(tmp_path / "nyu")], tmp_path / "out"
    with pytest.raises(InputError, match="the depth probe takes one process, not 2"):
        spec.read(tmp_path / "s.yaml", out, words, 2)
    out.mkdir()
    for place in sweep.prepare(spec.read(tmp_path / "s.yaml", out, words, 1), out):
        element.Element(place, tmp_path)()
        assert sweep.element_status(place)[1:4] == ["done", "1/1", "1/1"]
        assert float(sweep.element_status(place)[6]) > 0
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["moco_t"]) for row in rows] == [0.1, 1] and all(float(row["depth_rmse"]) > 0 for row in rows)
    encoders = runs.read([out])
    assert [one.measured["depth_mse"] for one in encoders] == [float(row["depth_mse"]) for row in rows]
    assert comparison.accuracy_measure(encoders) == runs.DEPTH


TABLE = """\ufeffloss,moco_t,moco_align_w,moco_unif_w,schedule,cos,published_top1,published_val_alignment
infonce,0.07,,,3 4,,70.5,
infonce,0.2,,,,,71.25,0.5
align-uniform,,0.98,0.96,,true,,
infonce,0.5,,,,FALSE,60,
infonce,1,,,,,50,
infonce,2,,,,,40,
"""


def table_of(tmp_path: Path, text: str, **more: object) -> list[spec.Element]:
    (tmp_path / "made-up.csv").write_text(text, encoding="utf-8")
    return read(tmp_path, {"encoders": "made-up.csv"}, **more)


def test_a_published_table_is_trained_row_by_row(tmp_path: Path) -> None:
    """What a cell says is the option, an empty one leaves it to `set` or the default."""
    elements = table_of(tmp_path, TABLE, probe={"epochs": 1})
    runs_ = [element.pretrain for element in elements]
    assert [(o.loss, o.moco_t, o.moco_align_w, o.moco_unif_w, o.schedule, o.cos) for o in runs_[:4]] == [
        ("infonce", 0.07, 0, 0, [3, 4], False),
        ("infonce", 0.2, 0, 0, [120, 160], False),
        ("align-uniform", 0.07, 0.98, 0.96, [120, 160], True),
        ("infonce", 0.5, 0, 0, [120, 160], False),
    ]
    assert all((o.arch, o.moco_k) == ("smallcnn", 64) for o in runs_)
    printed = [element.published for element in elements]
    assert printed[:3] == [{"lincls_top1": 70.5}, {"lincls_top1": 71.25, "val_alignment": 0.5}, {}]
    # a figure changes no encoder: the element keeps its name, and its result
    assert [e.id for e in table_of(tmp_path, TABLE.replace("70.5", "1"), probe={"epochs": 1})] == [
        e.id for e in elements
    ]


def test_published_figures_stand_beside_the_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In results.csv, and in the report as columns, as a figure, and as a difference with a rank correlation."""
    table_of(tmp_path, TABLE, probe={"epochs": 1}, name="made-up")
    out = tmp_path / "out"
    out.mkdir()
    elements = spec.read(tmp_path / "spec.yaml", out, [], 1).elements
    measured = (80.5, 73.25, 20.0, 61.0, 52.0, 44.0)
    for place, one, top1 in zip(sweep.prepare(spec.Spec("made-up", elements), out), elements, measured, strict=True):
        made_runs.run(place / "pretrain", **{name: getattr(one.pretrain, name) for name in ("loss", "moco_t")})
        probed = {"top1": top1, "top5": 99.0, "best_top1": top1, "pretrained": "checkpoint_0001.pth.tar"}
        write_json(place / "lincls" / "lincls.json", probed)
        write_json(place / "row.json", {"lincls_top1": top1})
    with element.gather(out).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["lincls_top1"], row["published_lincls_top1"]) for row in rows[:3]] == [
        ("80.5", "70.5"), ("73.25", "71.25"), ("20.0", ""),
    ]  # fmt: skip
    assert report([str(out), "--output", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert (tmp_path / "page" / "published-lincls_top1.png").stat().st_size > 1000
    # (10 + 2 + 1 + 2 + 4) / 5; the two orders differ in the first two of five: ρ = 1 - 6·2 / (5·24)
    assert "linear top-1 [%], measured minus published, mean of 5: +3.80; rank correlation 0.90" in page
    assert "alignment, measured minus published, mean of 1: +0.000; no rank correlation" in page
    assert "published linear top-1 [%]" in page and '<td class="n" data-value="71.25">71.25</td>' in page
    assert page.count("pair-") == 0 and page.count('aria-label="alignment: measured against published"') == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must begin with a line of column names"),
        ("moco_t,moco_t\n1,2\n", "each once and none empty"),
        ("moco_t,\n1,2\n", "each once and none empty"),
        ("moco_t\n", "column names but no rows"),
        ("moco_t\n1,2\n", "row 2 has 2 cells, but the header has 1"),
        ('moco_t\n"1\n', "give a CSV file in UTF-8"),
        ("moco_t\n-1\n", "row 2 of .*made-up.csv: --moco-t must be greater than 0"),
        ("moco_tt\n1\n", "no option 'moco_tt'; did you mean moco_t"),
        ("output_dir\nx\n", "a sweep sets output_dir itself"),
        ("moco_t,published_topp1\n1,2\n", "published_topp1 names no known measure; did you mean top1"),
        ("moco_t,published_top1\n1,high\n", "row 2, published_top1: 'high' is not a finite number"),
        ("moco_t,published_top1\n1,nan\n", "leave the cell empty if none is published"),
        ("moco_t,published_top1\n1,50\n1,60\n", "row 3 of .* is the encoder of row 2: give each a `seed`"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        table_of(tmp_path, text)
    with pytest.raises(InputError, match=r"cannot read the encoders in .*nowhere\.csv: No such"):
        read(tmp_path, {"encoders": "nowhere.csv"})


def test_a_table_has_a_column_for_whatever_an_element_has(tmp_path: Path) -> None:
    rows = {"a": {"loss": 1.0}, "b": {"train_loss": 2.0, "lincls_top1": 50.0}}  # a: written by an earlier version
    for (name, row), t in zip(rows.items(), (0.1, "0:1,2:3"), strict=True):
        write_json(tmp_path / "elements" / name / "element.json", {"swept": {"loss": "hard", "moco_t": t}})
        write_json(tmp_path / "elements" / name / "row.json", row)
    write_json(tmp_path / "sweep.json", {"elements": ["b", "a", "not there yet"]})
    assert element.gather(tmp_path).read_text().splitlines() == [
        "id,loss,moco_t,train_loss,lincls_top1", 'b,hard,"0:1,2:3",2.0,50.0', "a,hard,0.1,1.0,"
    ]  # fmt: skip


def test_a_journal_outlives_a_node_that_died_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for entry in ({"n": 1}, {"n": 2}):
        journal.append(path, entry)
    path.write_text(path.read_text()[:-4])
    journal.append(path, {"n": 3})
    journal.append(path, {"n": 4})
    assert journal.read(path) == [{"n": 1}, {"n": 3}, {"n": 4}]
