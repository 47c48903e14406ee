"""What run and sweep folders amount to: the right number, or none and the reason why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moco.errors import InputError
from moco.report.comparison import accuracy_measure, differing, predicts, temperature_curves
from moco.report.correlation import spearman
from moco.report.page import findings
from moco.report.runs import COLLAPSE, DEPTH, DONE, FAILED, KNN, OTHER, PROBE, UNFINISHED, UNMEASURED, Encoder, read
from tests.report.made_runs import run, sweep, write


def test_a_finished_run_has_the_numbers_of_its_last_epoch(tmp_path: Path) -> None:
    (one,) = read([run(tmp_path / "one", knn=91.5, alignment=0.25, uniformity=-3.0)])
    assert (one.name, one.state, one.why, one.trained) == ("one", DONE, "", True)
    expected = {KNN: 91.5, "val_alignment": 0.25, "val_uniformity": -3.0, "val_tolerance": 0.4, "loss": 3.0}
    assert one.measured == expected


def test_a_half_finished_run_has_none(tmp_path: Path) -> None:
    (one,) = read([run(tmp_path / "one", epochs=1)])
    assert (one.state, one.why, one.measured) == (UNFINISHED, "1 of 2 epochs", {})


def test_a_last_line_that_was_cut_off_is_no_evaluation(tmp_path: Path) -> None:
    log = run(tmp_path / "one") / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    (one,) = read([tmp_path / "one"])
    assert (one.state, one.measured) == (UNMEASURED, {})
    assert "no evaluation after the last epoch" in one.why


def test_an_earlier_evaluation_does_not_stand_in(tmp_path: Path) -> None:
    log = run(tmp_path / "one") / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # epoch 1 was evaluated, epoch 2 was not
    (one,) = read([tmp_path / "one"])
    assert (one.state, one.measured) == (UNMEASURED, {})


def test_numbers_that_are_not_finite_are_none(tmp_path: Path) -> None:
    (one,) = read([run(tmp_path / "one", alignment=float("nan"))])
    assert (one.state, one.measured) == (UNMEASURED, {})
    assert one.why == "not finite: alignment"


@pytest.mark.parametrize(("uniformity", "state"), [(-0.11, DONE), (-0.09, COLLAPSE), (0.0, COLLAPSE)])
def test_collapse_is_told_by_uniformity(tmp_path: Path, uniformity: float, state: str) -> None:
    (one,) = read([run(tmp_path / "one", uniformity=uniformity)])
    assert one.state == state and one.measured["val_uniformity"] == uniformity


def test_probe_of_the_last_checkpoint_alone(tmp_path: Path) -> None:
    assert read([run(tmp_path / "one", probe=77.0)])[0].measured[PROBE] == 77.0
    early = run(tmp_path / "two")
    write(early / "lincls" / "lincls.json", {"top1": 77.0, "pretrained": "two/checkpoint_0000.pth.tar"})
    (two,) = read([early])
    assert PROBE not in two.measured and two.why == "its linear probe is not of the last checkpoint"


def test_probes_of_other_settings_are_left_out(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, probe=70.0) for name in ("a", "b", "other", "tuned")]
    for folder, options in ((folders[2], {"lr": 30.0, "train_fraction": 0.01}), (folders[3], {"finetune": True})):
        path = folder / "lincls" / "lincls.json"
        write(path, json.loads(path.read_text()) | {"options": options})
    a, b, other, tuned = read(folders)
    assert a.measured[PROBE] == b.measured[PROBE] == 70.0
    assert PROBE not in other.measured and other.why == "its linear probe has other settings than most"
    assert PROBE not in tuned.measured and "not a linear probe" in tuned.why
    assert {one.state for one in (a, b, other, tuned)} == {DONE}


def test_the_odd_ones_out_are_marked(tmp_path: Path) -> None:
    folders = [run(tmp_path / name) for name in "abc"]
    folders.append(run(tmp_path / "commit", git="b" * 40))
    folders.append(run(tmp_path / "data", dataset="cifar10"))
    folders.append(run(tmp_path / "crops", recipe="v2"))
    states = {one.name: (one.state, one.why) for one in read(folders)}
    assert {states[name] for name in "abc"} == {(DONE, "")}
    assert states["commit"] == (OTHER, f"another commit than most: {'b' * 12}")
    assert states["data"] == (OTHER, "another data set than most: cifar10")
    assert states["crops"] == (OTHER, "another augmentation than most: v2")


def test_a_run_that_went_on_under_another_commit_is_of_both(tmp_path: Path) -> None:
    log = run(tmp_path / "mixed") / "log.jsonl"
    start = json.loads(log.read_text().splitlines()[0]) | {"git": "b" * 40}
    log.write_text(log.read_text() + json.dumps(start) + "\n")
    mixed = read([run(tmp_path / "a"), run(tmp_path / "b"), tmp_path / "mixed"])[-1]
    assert mixed.state == OTHER and f"{'a' * 12} then {'b' * 12}" in mixed.why


def test_a_log_without_options_is_of_another_version(tmp_path: Path) -> None:
    log = run(tmp_path / "old") / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    (old,) = read([tmp_path / "old"])
    assert (old.state, old.measured) == (UNMEASURED, {}) and "another version" in old.why


def test_elements_of_a_sweep(tmp_path: Path) -> None:
    elements: dict[str, dict[str, Any]] = {
        "good": {"probe": 81.0}, "half": {"epochs": 1, "row": False}, "unprobed": {"probe": None, "row": False},
        "broken": {"row": False}, "damaged": {"row": False}, "waiting": {"row": False},
    }  # fmt: skip
    folder = sweep(tmp_path / "s", elements)
    write(folder / "elements" / "broken" / "failed.json", {"error": "the loss is not finite"})
    (folder / "elements" / "damaged" / "pretrain" / "log.jsonl").write_text("{\n{}\n")
    (folder / "elements" / "waiting" / "pretrain" / "log.jsonl").unlink()
    found = {one.name: one for one in read([folder])}
    assert list(found) == list(elements)
    assert found["good"].measured[PROBE] == 81.0
    assert [one.state for one in found.values()] == [DONE, UNFINISHED, UNFINISHED, FAILED, FAILED, UNFINISHED]
    whys = "", "1 of 2 epochs", "its probe has not begun", "the loss is not finite"
    assert tuple(one.why for one in found.values())[:4] == whys
    assert "damaged in line 1" in found["damaged"].why and found["waiting"].why == "has not begun"
    assert all(not one.measured for name, one in found.items() if name != "good")


@pytest.mark.parametrize(("folder", "kind"), [("lincls", "linear"), ("depth", "depth")])
def test_a_probe_that_has_not_ended_is_named(tmp_path: Path, folder: str, kind: str) -> None:
    place = sweep(tmp_path / "s", {"one": {"probe": None, "row": False}})
    (place / "elements" / "one" / folder).mkdir()
    assert read([place])[0].why == f"its {kind} probe has not ended"


def test_two_sweeps_may_have_the_same_elements(tmp_path: Path) -> None:
    folders = [sweep(tmp_path / name, {"x": {}}, name) for name in ("one", "two")]
    assert [one.name for one in read(folders)] == ["one/x", "two/x"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: folder.mkdir(), "neither a run nor a sweep"),
        (
            lambda folder: write(folder / "log.jsonl", {"kind": "start"}).write_text('{"kind": "start"}\n'),
            "no training",
        ),
        (lambda folder: write(folder / "sweep.json", {"name": "s", "elements": []}), "no element of the sweep"),
        (lambda folder: write(folder / "sweep.json", {"name": "s", "elements": ["x"]}), "no element of the sweep"),
        (lambda folder: write(folder / "sweep.json", ["s"]), "cannot be read"),
    ],
)
def test_folders_with_nothing_to_show(tmp_path: Path, make: Any, told: str) -> None:
    make(tmp_path / "it")
    with pytest.raises(InputError, match=told):
        read([tmp_path / "it"])


def test_two_runs_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 runs have the name"):
        read([run(tmp_path / "a" / "one"), run(tmp_path / "b" / "one")])


def encoder(name: str, **measured: float) -> Encoder:
    return Encoder(name, Path(name), measured={"val_alignment": 0.0, "val_uniformity": -1.0, KNN: 50.0} | measured)


def test_accuracies_are_not_mixed() -> None:
    assert accuracy_measure([]) is None
    both, knn = encoder("a", **{PROBE: 80.0}), encoder("b")
    assert accuracy_measure([both]) == PROBE
    assert accuracy_measure([both, knn]) == KNN


def test_correlation_with_and_without_collapsed_encoders() -> None:
    draws = [(0.3, -2.0, 90.0), (0.4, -2.5, 88.0), (0.2, -2.2, 93.0), (0.6, -3.0, 92.0), (0.1, -1.0, 70.0)]
    some = [encoder(str(i), val_alignment=a, val_uniformity=u, **{KNN: k}) for i, (a, u, k) in enumerate(draws)]
    fallen = [encoder(f"c{i}", val_uniformity=-0.01 * i, **{KNN: 10.0 + i}) for i in range(3)]
    for one in fallen:
        one.state = COLLAPSE
    other = encoder("other", val_uniformity=-9.0, **{KNN: 1.0})
    other.state = OTHER
    everything = [*some, *fallen, other]
    without = predicts(everything, collapsed=False)
    assert without.n == 5
    assert without.rho == pytest.approx(spearman([a + u for a, u, _ in draws], [k for *_, k in draws]))
    found = predicts(everything, collapsed=True)
    assert found.n == 8 and found.rho < without.rho < 0


def test_options_count_where_their_term_does() -> None:
    names = ("moco_t", "moco_unif_t", "seed")
    ours = {"loss": "infonce", "moco_contr_w": 1, "moco_unif_w": 0, "moco_t": 0.1, "moco_unif_t": 2, "seed": 0}
    a, b = (Encoder(name, Path(name), options=dict(ours)) for name in "ab")
    b.options["moco_unif_t"] = 3  # of a term without weight
    assert differing([a, b], names) == []
    b.options["moco_t"] = 0.2
    assert differing([a, b], names) == ["moco_t"]
    a.options |= {"loss": "hcl", "moco_contr_w": None, "moco_beta": 2.0}  # a head without weights
    assert (a.option("moco_t"), a.option("moco_beta"), a.option("moco_unif_t")) == (0.1, 2.0, None)
    assert b.option("moco_beta") is None
    b.options["moco_t"] = "0:0.5,9:0.07"
    assert (a.temperature, b.temperature) == (0.1, None)


def test_temperature_curves_hold_what_differs_in_nothing_else(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / f"{t}-{seed}", moco_t=t, seed=seed, knn=90 + 10 * t + seed)
        for t in (0.5, 0.1)
        for seed in (0, 1)
    ]
    runs += [run(tmp_path / f"m{t}", moco_t=t, moco_m=0.9) for t in (0.1, 0.2)]
    runs += [run(tmp_path / "alone", moco_t=0.3, moco_m=0.5)]
    runs += [run(tmp_path / f"no{t}", moco_t=t, moco_contr_w=0, moco_unif_w=1) for t in (0.1, 0.2)]
    curves = temperature_curves(read(runs), ("moco_t", "moco_m", "moco_contr_w", "seed"))
    assert [curve.label for curve in curves] == ["moco_m 0.999", "moco_m 0.9"]
    ts, means = curves[0].points(KNN)
    assert ts == [0.1, 0.5] and means == pytest.approx([91.5, 95.5])


def test_a_value_that_is_no_number_is_not_shown_as_done(tmp_path: Path) -> None:
    log = run(tmp_path / "a") / "log.jsonl"
    log.write_text(log.read_text().replace('"knn_top1": 90.0', '"knn_top1": "high"'))
    (one,) = read([tmp_path / "a"])
    assert '"high"' in log.read_text()
    assert (one.state, one.measured) == (UNMEASURED, {}) and "is no number" in one.why and "kNN" in one.why


def test_a_damaged_probe_is_told_from_one_that_has_not_ended(tmp_path: Path) -> None:
    run(tmp_path / "a", probe=70.0)
    (tmp_path / "a" / "lincls" / "lincls.json").write_text('{"top1": "x"}')
    (one,) = read([tmp_path / "a"])
    assert "lincls.json is damaged" in one.why and "lincls_top1" not in one.measured


def test_a_depth_probe_is_read_from_its_folder(tmp_path: Path) -> None:
    """Its error stands where the accuracy does, for which less is better; other settings than most leave it out."""
    uniformities = {"a": -3.0, "b": -2.5, "c": -2.0, "d": -1.5}
    folders = [run(tmp_path / name, uniformity=value) for name, value in uniformities.items()]
    for folder, mse in zip(folders, (0.5, 0.6, 0.8, 0.7), strict=True):
        found = {"depth_mse": mse, "depth_rmse": mse**0.5, "pretrained": "checkpoint_0001.pth.tar"}
        write(folder / "depth" / "depth.json", {**found, "options": {"features_from": "conv5"}})
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for record in log:
            record.pop("knn_top1", None)
        (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    encoders = read(folders)
    assert [one.measured[DEPTH] for one in encoders] == [0.5, 0.6, 0.8, 0.7] and encoders[0].measured["depth_rmse"]
    assert accuracy_measure(encoders) == DEPTH
    assert predicts(encoders + read(folders[:1]), collapsed=True).rho > 0.5
    told = findings(encoders)
    assert told[1] == "Lowest depth MSE [m²]: 0.5 (a); highest: 0.8 (c)."
    write(folders[0] / "depth" / "depth.json", {"depth_mse": "x"})
    assert read(folders)[0].why == "its depth.json is damaged: depth_mse is no number"
    other = {"depth_mse": 0.1, "pretrained": "checkpoint_0001.pth.tar", "options": {"features_from": "conv4"}}
    write(folders[0] / "depth" / "depth.json", other)
    assert read(folders)[0].why == "its depth probe has other settings than most"
    write(folders[0] / "depth" / "depth.json", {**other, "pretrained": "checkpoint_0000.pth.tar"})
    assert read(folders)[0].why == "its depth probe is not of the last checkpoint"


def test_a_probes_folder_is_no_run(tmp_path: Path) -> None:
    run(tmp_path / "a", pretrained="checkpoint_0199.pth.tar")
    with pytest.raises(InputError, match=r"give the folder of a run of main_moco\.py"):
        read([tmp_path / "a"])
