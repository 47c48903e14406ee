"""Reads a run's measures.json: histograms of similarities, and all measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moco.metrics.table import OF_FEATURES
from moco.report.plots import RUN_COLOURS, Plot, figure, legend, plain_axes
from moco.report.runs import Encoder

MEASURES_FILE = "measures.json"
SCHEMA = 1
KINDS = {"negative": "two images", "same_class": "two images of one class", "positive": "two views of one image"}


@dataclass
class Checkpoint:
    """Holds the measures of one checkpoint of a run."""

    run: str
    name: str = ""
    why: str = ""  # why its measures cannot be shown; then the rest is empty
    heads: list[str] = field(default_factory=list)  # of the columns
    rows: list[tuple[str, list[float | None]]] = field(default_factory=list)  # (title, value of each kind of features)
    plots: list[Plot] = field(default_factory=list)


def measured(encoders: Sequence[Encoder]) -> list[Checkpoint]:
    """Reads the measures.json of each run's folder, where there is one.

    `python -m moco.evaluate --json` writes it.
    """
    found = [one for one in encoders if (one.folder / MEASURES_FILE).exists()]
    return [_read(one, f"similarities-{number}") for number, one in enumerate(found, 1)]


def _read(encoder: Encoder, name: str) -> Checkpoint:
    try:
        found = json.loads((encoder.folder / MEASURES_FILE).read_text())
        if found["schema"] != SCHEMA:
            return Checkpoint(encoder.name, why=f"has schema {found['schema']}, but this version reads {SCHEMA}")
        file = Path(found["checkpoint"]["path"]).name
        epoch = found["checkpoint"]["epoch"]
        spaces = found["spaces"]
        return Checkpoint(
            encoder.name,
            file if epoch is None else f"{file}, epoch {epoch}",
            heads=[f"{space} ({int(values['dim'])})" for space, values in spaces.items()],
            rows=[
                (row.heading, [_number(values["measures"].get(key)) for values in spaces.values()])
                for key, row in OF_FEATURES.items()
            ],
            plots=[
                _histograms(f"{name}-{place}", space, values["histograms"])
                for place, (space, values) in enumerate(spaces.items(), 1)
            ],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return Checkpoint(encoder.name, why="cannot be read")


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _histograms(name: str, space: str, counted: dict[str, Any]) -> Plot:
    """Draws densities, which are comparable for different numbers of pairs.

    A kind without pairs is left out.
    """
    few = sum(counted["positive"]) < 1000 and len(counted["positive"]) % 2 == 0
    join = 2 if few else 1  # bins joined: narrow bins with few pairs show noise
    edges = np.array(counted["edges"], float)[::join]
    drawn, axes = figure(4.4, 3.7)
    for (kind, title), shade in zip(KINDS.items(), RUN_COLOURS, strict=False):
        if counted[kind] and (total := sum(counted[kind])) > 0:
            density = np.array(counted[kind], float).reshape(-1, join).sum(1) / total / np.diff(edges)
            axes.stairs(density, edges, fill=True, color=shade, alpha=0.3)
            axes.stairs(density, edges, color=shade, linewidth=1.2, label=title)
    plain_axes(axes, "", f"cosine of the {space}'s features", "density")
    axes.xaxis.label.set_parse_math(False)
    axes.set_xlim(-1, 1)
    axes.set_ylim(0)
    legend(axes)
    return Plot(name, drawn, f"similarities of the {space}")
