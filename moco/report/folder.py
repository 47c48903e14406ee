"""Writes the report's folder: the page and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moco.errors import InputError
from moco.pretrain.options import PretrainOptions
from moco.report import figures, page, similarities, sweep_figures
from moco.report.comparison import accuracy_measure, published, temperature_curves
from moco.report.neighbours import Row, grid
from moco.report.runs import MEASURED, Encoder
from moco.run.checkpoint import latest
from moco.run.files import write_text
from moco.run.options import result_options


def write(
    encoders: Sequence[Encoder], folder: Path, title: str, queries: int = 0, refresh: float | None = None
) -> list[Path]:
    """Writes the page and its PNGs; returns their paths, the page first.

    queries: rows of nearest neighbours for the last checkpoint of each run that is no element of a sweep.
    refresh: seconds after which a browser loads the page again; None: never.
    """
    measure = accuracy_measure(encoders)
    against = [name for name in (measure, "val_uniformity", "val_tolerance") if name]
    curves = temperature_curves(encoders, result_options(PretrainOptions))
    against = [name for name in against if any(curve.points(name)[0] for curve in curves)]
    used = sorted({one.temperature for one in encoders if one.temperature})
    together, losses = figures.training(encoders)
    contents = page.Contents(
        title,
        encoders,
        plane=[sweep_figures.plane(encoders, measure)] if any(one.state in MEASURED for one in encoders) else [],
        published=[sweep_figures.published(name, some) for name, some in published(encoders).items()],
        temperatures=sweep_figures.temperatures(curves, against),
        together=together,
        losses=losses,
        penalties=[sweep_figures.penalties(used[:: max(1, -(-len(used) // 6))] or sweep_figures.TEMPERATURES)],
        checkpoints=similarities.measured(encoders),
        grids=grids(encoders, queries),
        refresh=refresh,
    )
    write_text(folder / "index.html", page.html(contents))
    return [folder / "index.html", *(plot.png(folder) for plot in contents.plots)]


def grids(encoders: Sequence[Encoder], queries: int) -> dict[str, list[Row]]:
    """Finds rows of nearest neighbours for each run, by checkpoint.

    InputError if a run has no checkpoint, or its images are missing.
    """
    found = {}
    for one in encoders if queries else ():
        if not one.sweep:
            path, _ = latest(one.folder)
            if path is None:
                raise InputError(f"{one.folder} holds no checkpoint to find neighbours with; leave out --neighbours")
            found[f"{one.name}, {path.name}"] = grid(path, one.options, queries)
    return found
