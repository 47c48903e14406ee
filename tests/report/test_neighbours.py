"""Nearest neighbours of a checkpoint, and the page's sections about a checkpoint."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.datasets import open_split
from moco.encoders import build_encoder
from moco.errors import InputError
from moco.metrics.geometry import similarity_histograms
from moco.report.__main__ import main
from moco.report.neighbours import Row, Shown, grid
from moco.report.page import Contents, html
from moco.report.runs import Encoder
from moco.report.similarities import SCHEMA, measured
from moco.run import checkpoint
from tests.report.made_runs import OPTIONS, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with a checkpoint of random weights."""
    place = run(tmp_path / "one")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"module.encoder_q.{k}": v for k, v in build_encoder("smallcnn", 8).state_dict().items()}
    checkpoint.save(place / "checkpoint_0001.pth.tar", {"epoch": 2, "arch": "smallcnn", "state_dict": state})
    return place


def test_neighbours_are_the_nearest_others(folder: Path) -> None:
    rows = grid(folder / "checkpoint_0001.pth.tar", OPTIONS, queries=3, count=5)
    val = open_split(None, "digits", "val")
    names = [val.name(i) for i in range(len(val))]
    for row, index in zip(rows, (0, 177, 354), strict=True):
        assert row.query.name == names[index]
        assert row.query.label == val.classes[int(val.labels[index])]
        assert len(row.nearest) == 5 and row.query.name not in {one.name for one in row.nearest}
        values = [one.similarity for one in row.nearest]
        assert values == sorted(values, reverse=True) and values[-1] > 0 and values[0] < 1.0001
    # an untrained network still tells a scan from most others by its pixels
    pixels = np.stack([val.decode(i).astype(float).ravel() for i in range(len(val))])
    apart = ((pixels - pixels[177]) ** 2).sum(1)
    nearest = [apart[names.index(one.name)] for one in rows[1].nearest]
    assert np.mean(nearest) < 0.7 * np.mean(apart)
    with Image.open(io.BytesIO(base64.b64decode(rows[0].query.uri.partition(",")[2]))) as picture:
        assert picture.size == (72, 72)


def test_images_that_are_gone(folder: Path) -> None:
    with pytest.raises(InputError, match="no longer in /nowhere"):
        grid(folder / "checkpoint_0001.pth.tar", OPTIONS | {"dataset": "folder", "data": "/nowhere"}, queries=3)


def test_the_report_shows_them_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "out"
    assert main([str(folder), "--neighbours", "2", "--output", str(out)]) == 0
    text = (out / "index.html").read_text()
    assert text.count('src="data:image/jpeg;base64,') == 2 * 9
    assert "one, checkpoint_0001.pth.tar" in text
    (folder / "checkpoint_0001.pth.tar").unlink()
    assert main([str(folder), "--neighbours", "2", "--output", str(out)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_names_of_files_and_classes_are_text() -> None:
    bad = Shown("<b>", "<i>cat</i>", 0.5, "data:image/jpeg;base64,")
    text = page({"<u>": [Row(bad, [bad, Shown("x", "dog", 0.25, "data:,")])]})
    assert not {"<b>", "<i>", "<u>"} & set(text.replace(">", "> ").split()) and "&lt;i&gt;cat" in text
    assert text.count('class="same"') == 1 and text.count('class="different"') == 1


def page(grids: dict[str, list[Row]] | None = None, encoders: Sequence[Encoder] = ()) -> str:
    """Only what these say."""
    return html(Contents("a title", encoders, [], [], [], [], [], [], measured(encoders), grids or {}))


def measures(histogram: Any, schema: int = SCHEMA) -> dict[str, Any]:
    space = {"dim": 2, "measures": {"alignment": -0.25, "knn_top1": None}, "histograms": histogram}
    return {
        "schema": schema,
        "checkpoint": {"path": "/x/checkpoint_0001.pth.tar", "epoch": 2},
        "spaces": {"output": space},
    }


def test_histograms_are_densities(tmp_path: Path) -> None:
    q = torch.nn.functional.normalize(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), dim=1)
    counted = similarity_histograms(q, q, None, 20)
    histogram = {
        "edges": torch.linspace(-1, 1, 21).tolist(), "positive": counted.positive.tolist(),
        "negative": counted.negative.tolist(), "same_class": None,
    }  # fmt: skip
    one = Encoder("one", tmp_path)
    assert measured([one]) == [] and "Similarities" not in page(encoders=[one])
    (tmp_path / "measures.json").write_text(json.dumps(measures(histogram)))
    text = page(encoders=[one])
    assert "checkpoint_0001.pth.tar, epoch 2" in text and "−0.25" in text and "–</td>" in text
    assert "two views of one image" in text and "two images of one class" not in text  # a kind without pairs
    ((plot,),) = (found.plots for found in measured([one]))
    names = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert names == ["two images", "two views of one image"]
    patches: Any = plot.figure.axes[0].patches
    negative, _, positive, _ = (stairs.get_data() for stairs in patches)
    # all positives are 1: with bins joined by two, the last is 0.2 wide and so 5 high
    assert positive.values.tolist() == pytest.approx([0] * 9 + [5])
    assert (negative.values * np.diff(negative.edges)).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps(measures({})), "cannot be read"),
        (json.dumps(measures({}, schema=9)), "has schema 9"),
    ],
)
def test_measures_of_another_kind(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "measures.json").write_text(content)
    text = page(encoders=[Encoder("one", tmp_path)])
    assert told in text and "<svg" not in text
