"""The study of sentence encoders: which settings have seeds, which two are compared, in which direction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import sentence_study
from moco.errors import InputError
from moco.report.runs import CR, MR, Encoder

CONTRASTIVE = {"loss": "infonce", "moco_contr_w": 1.0, "moco_align_w": 0.0, "moco_unif_w": 0.0}
UNIFORM = {"loss": "align-uniform", "moco_contr_w": 0.0, "moco_align_w": 0.9, "moco_unif_w": 0.1}


def encoder(options: dict[str, Any], seed: int, mr: float, cr: float = 70.0) -> Encoder:
    measured = {MR: mr, CR: cr, "val_alignment": 0.5, "val_uniformity": -2.0}
    defaults = sentence_study.DEFAULTS
    own = {"seed": seed, "output_dir": f"runs/{seed}", "config": f"runs/{seed}.yaml"}
    return Encoder(f"{options['loss']}-{seed}", Path(), options={**defaults, **options, **own}, measured=measured)


@pytest.fixture
def encoders() -> list[Encoder]:
    """Contrastive with 60, 62, 64 and align + uniform with 58, 59, 60 of MR, out of order, and one with one seed."""
    contrastive = [encoder(CONTRASTIVE, seed, 60 + 2 * seed) for seed in (2, 0, 1)]
    uniform = [encoder(UNIFORM, seed, 58 + seed) for seed in (1, 2, 0)]
    return [*contrastive, *uniform, encoder(CONTRASTIVE | {"moco_t": 0.5}, 0, 50.0)]


def test_settings_with_three_seeds(encoders: list[Encoder]) -> None:
    found = sentence_study.with_seeds(encoders)
    assert [[one.measured[MR] for one in its] for its in found] == [[60, 62, 64], [58, 59, 60]]


def test_the_order_of_the_two_losses(encoders: list[Encoder]) -> None:
    rows = sentence_study.order(sentence_study.with_seeds(encoders))
    assert rows[2].startswith("| MR accuracy | +3.0 ± 1.0 |")  # differences 2, 3, 4
    assert rows[2].endswith("| +3.75 |") and rows[3].endswith("| +2.91 |")


def test_a_sweep_without_one_of_them_is_refused(encoders: list[Encoder]) -> None:
    with pytest.raises(InputError, match="no 3 seeds of align-uniform"):
        sentence_study.order(sentence_study.with_seeds(encoders[:3]))


def test_rows_of_the_baselines() -> None:
    names = (sentence_study.UNTRAINED, sentence_study.WORDS, sentence_study.MAJORITY)
    values = {name: {"accuracy": 50.0 + i} for i, name in enumerate(names)}
    found = {"datasets": {"MR": {"accuracies": values}, "CR": {"accuracies": values}}}
    assert sentence_study.baselines(found)[3] == f"| {names[1]} | 51.0 | 51.0 |"
