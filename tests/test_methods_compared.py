"""Methods at equal processor time: what is measured, how many epochs follow, and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks import methods_compared
from benchmarks.methods_compared import METHODS, equal_time, method_of, minutes_of_training, with_epochs
from launch import spec
from moco.errors import InputError
from moco.report.runs import Encoder

MEASURED = {"knn_top1": 40.0, "lincls_top1": 50.0, "val_alignment": 0.5, "val_uniformity": -3.0, "val_tolerance": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {
    "v2": {"keys": "queue", "crops": None, "symmetric": False},
    "v2+": {"keys": "queue", "crops": None, "symmetric": True},
    "v3": {"keys": "batch", "crops": None, "symmetric": True},
    "multi-crop": {"keys": "queue", "crops": "2x32@.2-1+4x16@.1-.2", "symmetric": True},
}


def encoder(method: str, seed: int, state: str = "done") -> Encoder:
    options = {**OPTIONS[method], "seed": seed, "epochs": 6, "batch_size": 8}
    start = {"kind": "start", "git": "0123456789abcdef", "machine": {"device": "one"}}
    steps = [{"kind": "train", "global_step": at, "timing": {"images_per_s": 0.4}} for at in (3, 6)]
    measured = {**MEASURED, "lincls_top1": 50.0 + seed} if state == "done" else {}
    return Encoder(
        f"{method}-{seed}", Path("x"), state=state, options=options, records=[start, *steps], measured=measured
    )


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, a result and a page of its own."""
    (tmp_path / "recipe.yaml").write_text(methods_compared.RECIPE.read_text())
    (tmp_path / "page.md").write_text("before\n<!-- cifar10-methods -->\nNot measured.\n<!-- end -->\nafter\n")
    monkeypatch.setattr(methods_compared, "RECIPE", tmp_path / "recipe.yaml")
    monkeypatch.setattr(methods_compared, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(methods_compared, "PAGE", tmp_path / "page.md")
    return tmp_path


def test_the_recipe_has_three_seeds_of_each_method() -> None:
    elements = spec.read(methods_compared.RECIPE, None, ["photos"], 1).elements
    methods = [method_of(vars(element.pretrain)) for element in elements]
    assert methods == [method for method in METHODS for _ in range(3)]
    shared = ("arch", "image_size", "batch_size", "recipe", "moco_dim", "channels_last")
    assert len({tuple(getattr(element.pretrain, name) for name in shared) for element in elements}) == 1


def test_methods_get_epochs_of_equal_cost(places: Path) -> None:
    ratios = {"v2": 1.0, "v2+": 1.58, "v3": 1.55, "multi-crop": 2.79}
    # 8 epochs of v2 are 7.9, 7.8 and 8.4 of the others'; 10 would be 9.5, 9.3 and 11.2
    epochs = equal_time({"seconds_of_an_epoch": 30.0, "ratio": ratios}, 329)
    assert epochs == {"v2": 8, "v2+": 5, "v3": 5, "multi-crop": 3}
    assert equal_time({"seconds_of_an_epoch": 30.0, "ratio": {"v2": 1.0, "v3": 2.0}}, 329) == {"v2": 10, "v3": 5}
    assert equal_time({"seconds_of_an_epoch": 30.0, "ratio": {"v2": 1.0, "v3": 40.0}}, 5) == {"v2": 1, "v3": 1}
    changed = with_epochs(methods_compared.RECIPE.read_text(), epochs)
    methods_compared.RECIPE.write_text(changed)
    elements = spec.read(methods_compared.RECIPE, None, ["photos"], 1).elements
    assert {method_of(vars(e.pretrain)): e.pretrain.epochs for e in elements} == epochs
    assert [line for line in changed.splitlines() if line.startswith("#")]
    with pytest.raises(InputError, match="must have one in each of 4 parts"):
        with_epochs("epochs: 3", epochs)


def test_the_cost_of_steps_is_measured_and_written(
    places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From image files on, at a tiny batch."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (places / "images/train" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(places / "images/train" / name / f"{i}.png")
    recipe = methods_compared.RECIPE.read_text().replace("batch_size: 256", "batch_size: 4")
    methods_compared.RECIPE.write_text(recipe)
    words = ["cost", str(places / "images"), "--rounds", "2", "--seconds", "1e-9"]
    assert methods_compared.main(words) == 0
    cost = json.loads(methods_compared.RESULT.read_text())["cost"]
    assert cost["ratio"].keys() == set(METHODS) and cost["ratio"]["v2"] == 1
    assert [len(times) for times in cost["seconds"].values()] == [2] * 4
    steps = 16 // 4
    in_turns = sorted(cost["seconds"]["v2"])
    assert cost["seconds_of_an_epoch"] == pytest.approx(sum(in_turns) / 2 / methods_compared.STEPS * steps)
    assert cost["ratio"]["multi-crop"] > 1.2  # six views of an image against two
    assert methods_compared.RECIPE.read_text().count(" epochs: 1\n") == 4
    assert "multi-crop: an epoch costs" in capsys.readouterr().out
    words[1] = str(places / "images")
    methods_compared.RECIPE.write_text(recipe.replace("batch_size: 4", "batch_size: 5"))
    with pytest.raises(InputError, match="has 16 images: cost needs at least 20"):
        methods_compared.main(words)


def test_the_report(places: Path) -> None:
    encoders = [encoder(method, seed) for method in METHODS for seed in (0, 1, 2)]
    with pytest.raises(InputError, match="run the command cost first"):
        methods_compared.report(encoders)
    ratios = dict(zip(METHODS, (1, 2.0, 1.5, 3.25), strict=True))
    cost = {"ratio": ratios, "seconds_of_an_epoch": 31.0, "rounds": 9, "commit": "f" * 40, "machine": {"device": "one"}}
    methods_compared.RESULT.write_text(json.dumps({"cost": cost}))
    methods_compared.report(encoders)
    page = methods_compared.PAGE.read_text()
    row = next(line for line in page.splitlines() if line.startswith("| multi-crop"))
    assert row == (
        "| multi-crop | 3 | 3.25 | 6 | 19.5 | 2.0 ± 0.0 | 40.0 ± 0.0 | 51.0 ± 1.0 | 0.500 ± 0.000 | -3.000 ± 0.000"
        " | 0.100 ± 0.000 |"
    )
    assert page.startswith("before\n") and page.endswith("<!-- end -->\nafter\n")
    assert "31 s for an epoch of v2, on one." in page and "Measured at commit 0123456789ab" in page
    written = json.loads(methods_compared.RESULT.read_text())
    assert written["cost"] == cost
    assert [len(its) for its in written["encoders"].values()] == [3] * 4
    with pytest.raises(InputError, match=r"1 of 12 encoders have not ended \(v2-0 is unfinished\)"):
        methods_compared.report([encoder("v2", 0, "unfinished"), *encoders[1:]])


def test_minutes_are_steps_by_their_speed() -> None:
    one = cast("Any", encoder("v2", 0))
    assert minutes_of_training(one) == pytest.approx(6 * 8 / 0.4 / 60)
