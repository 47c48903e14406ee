"""One page about runs: training curves, alignment and uniformity, temperature, similarities, neighbours.

    python -m moco.report RUN_OR_SWEEP... --output report      # report/index.html, and its figures as PNGs

A run is an output folder of main_moco.py, a sweep one of launch/sweep.py. docs/report.md tells what the page shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moco.commands import Parser, end_process, number, run_command
from moco.errors import EXIT_OK, InputError
from moco.pretrain.options import PretrainOptions
from moco.report import figures, page, similarities, sweep_figures
from moco.report.comparison import accuracy_measure, correlations, temperature_curves
from moco.report.correlation import FEWEST
from moco.report.neighbours import Row, grid
from moco.report.runs import MEASURED, Encoder, read
from moco.run.checkpoint import latest
from moco.run.files import write_text
from moco.run.options import result_options


def write(encoders: Sequence[Encoder], folder: Path, title: str, queries: int = 0) -> list[Path]:
    """Writes the page and its figures as PNGs; returns their paths, the page first. `queries`: rows of nearest
    neighbours for the last checkpoint of each run that is no element of a sweep."""
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
        temperatures=sweep_figures.temperatures(curves, against),
        together=together,
        losses=losses,
        penalties=[sweep_figures.penalties(used[:: max(1, -(-len(used) // 6))] or sweep_figures.TEMPERATURES)],
        checkpoints=similarities.measured(encoders),
        grids=grids(encoders, queries),
    )
    write_text(folder / "index.html", page.html(contents))
    return [folder / "index.html", *(plot.png(folder) for plot in contents.plots)]


def grids(encoders: Sequence[Encoder], queries: int) -> dict[str, list[Row]]:
    """By the checkpoint's name. InputError if a run has none, or its images are gone."""
    found = {}
    for one in encoders if queries else ():
        if not one.sweep:
            path, _ = latest(one.folder)
            if path is None:
                raise InputError(f"{one.folder} holds no checkpoint to find neighbours with; leave out --neighbours")
            found[f"{one.name}, {path.name}"] = grid(path, one.options, queries)
    return found


def said(encoders: Sequence[Encoder]) -> str:
    """The rank correlation in words, for the terminal."""
    lines = [f"{which}: {found}" for which, found in correlations(encoders)]
    return "rank correlation of alignment + uniformity with accuracy\n  " + "\n  ".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="moco-report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_OR_SWEEP", help="folders of runs and of sweeps")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder for page and figures (%(default)s)")
    parser.add_argument(
        "--neighbours",
        type=number(int, 0, 10_000),
        default=0,
        metavar="N",
        help="show N images and their nearest others (%(default)s)",
    )

    def run() -> int:
        arguments = parser.parse_args(argv)
        if arguments.output.suffix or arguments.output.is_file():
            raise InputError(f"--output is a folder for the page and its figures, and {arguments.output} names a file")
        encoders = read(arguments.runs)
        title = ", ".join(dict.fromkeys(one.sweep or one.name for one in encoders))
        if sum(one.compared for one in encoders) >= FEWEST:
            print(said(encoders))
        for path in write(encoders, arguments.output, title, arguments.neighbours):
            print(path)
        return EXIT_OK

    return run_command(run)


if __name__ == "__main__":
    end_process(main())
