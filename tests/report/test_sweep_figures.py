"""The papers' figures as PNGs: what is drawn is what was measured, and what cannot be compared has no colour."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from moco.report.plots import colour
from moco.report.runs import KNN, OTHER, Encoder
from moco.report.sweep_figures import penalties, plane, shares_of_uniform


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_penalties_follow_the_formula(temperature: float) -> None:
    """e^{s/τ} over its mean: the integral over [-1, 1] is 2τ sinh(1/τ), and the mean half of that."""
    s, push = shares_of_uniform(temperature, 20_001)
    assert s[0] == -1 and s[-1] == 1 and push.mean() == pytest.approx(1)
    expected = np.exp(s / temperature) / (temperature * math.sinh(1 / temperature))
    assert push == pytest.approx(expected, rel=2e-3)


def test_penalties_are_drawn(tmp_path: Path) -> None:
    with Image.open(penalties([0.05, 0.5], tmp_path / "p.png")) as picture:
        assert picture.width > 900


def test_what_cannot_be_compared_has_no_colour(tmp_path: Path) -> None:
    def encoder(name: str, knn: float, **more: str) -> Encoder:
        measured = {"val_alignment": knn / 100, "val_uniformity": -knn / 50, KNN: knn}
        return Encoder(name, Path(name), measured=measured, **more)  # type: ignore[arg-type]

    def area(encoders: list[Encoder], share: float) -> int:
        with Image.open(plane(encoders, KNN, tmp_path / "plane.png")) as picture:
            pixels = np.asarray(picture.convert("RGB"))[:, : picture.width * 17 // 20]  # without the colour bar
        wanted = np.round(np.array(to_rgb(colour(share))) * 255)
        return int((np.abs(pixels - wanted).max(-1) <= 2).sum())

    three = [encoder("a", 20), encoder("b", 50), encoder("c", 80)]
    assert area(three, 1.0) > 80  # the best has the top colour
    assert area([*three, encoder("other", 99, state=OTHER)], 1.0) > 80  # and keeps it: another's number sets no scale
    assert area([*three[:2], encoder("other", 80, state=OTHER)], 0.5) == 0
