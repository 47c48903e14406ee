"""The tuned comparison of two losses: what is held out, which setting is chosen, what the second sweep runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import tuned_heads
from launch import spec
from moco.errors import InputError
from moco.report.runs import Encoder


@dataclass
class Measured:
    options: dict[str, Any]
    measured: dict[str, float] = field(default_factory=dict)
    name: str = "one"


def encoders(*linear: float) -> list[Encoder]:
    found = []
    for i, accuracy in enumerate(linear):
        options = {"loss": "infonce", "lr": 0.06 * (i + 1), "moco_t": 0.1, "moco_k": 1024, "moco_m": 0.9}
        found.append(Measured(options, {"lincls_top1": accuracy}))
    return cast("list[Encoder]", found)


def test_a_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "images" / name / f"{i:02d}.png").write_bytes(b"")
    tuned_heads.hold_out(tmp_path / "images", tmp_path / "out")
    split = {part: sorted(p.name for p in (tmp_path / "out" / part / "dog").iterdir()) for part in ("train", "val")}
    assert split["val"] == ["00.png", "10.png"]
    assert len(split["train"]) == 18
    assert not set(split["train"]) & set(split["val"])


def test_the_highest_linear_accuracy_is_chosen() -> None:
    assert tuned_heads.best(encoders(40, 45, 44), "infonce").options["lr"] == 0.12


def test_an_unfinished_sweep_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    about = ["measured", "1 of 2 encoders have not been measured."]
    monkeypatch.setattr(tuned_heads.kept_encoders, "add", lambda *rest: (encoders(40), about))
    with pytest.raises(InputError, match=r"1 of 2 encoders have not been measured. Run the sweep to its end"):
        tuned_heads.choose(tmp_path)


def test_the_table_says_what_was_tried_and_chosen() -> None:
    uniform = encoders(43.26)
    uniform[0].options.update(loss="align-uniform", moco_unif_t=3, lr=0.12)
    lines = tuned_heads.tried([*encoders(40, 45.04, 44), *uniform])
    assert lines[2:] == [
        "| infonce | 3 | 40.0 to 45.0 | lr 0.12, t 0.1, k 1024, m 0.9 |",
        "| align-uniform | 1 | 43.3 to 43.3 | lr 0.12, unif_t 3, k 1024, m 0.9 |",
    ]


def test_the_second_sweep_has_the_chosen_settings_and_five_seeds(tmp_path: Path) -> None:
    path = tmp_path / "tuned.yaml"
    path.write_text(tuned_heads.tuned_recipe(encoders(45)))
    elements = spec.read(path, None, ["photos"], 1).elements
    assert [element.pretrain.seed for element in elements] == [0, 1, 2, 3, 4]
    assert {(e.pretrain.lr, e.pretrain.moco_m, e.pretrain.epochs) for e in elements} == {(0.06, 0.9, 2)}
