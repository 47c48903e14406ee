"""Writes one page about runs: curves, alignment and uniformity, neighbours.

    python -m moco.report RUN_OR_SWEEP... --output report      # report/index.html, and its figures as PNGs
    python -m moco.report RUN_OR_SWEEP... --watch 30           # again whenever a log has grown, until all runs are done

A run is an output folder of main_moco.py, a sweep one of launch/sweep.py. docs/report.md describes the page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from moco.commands import Number, Parser, end_with, run_command
from moco.errors import EXIT_OK, InputError
from moco.report.comparison import correlations
from moco.report.correlation import FEWEST
from moco.report.runs import UNFINISHED, Encoder, read


def drawing() -> Callable[..., list[Path]]:
    """Returns `moco.report.folder.write`. InputError if matplotlib is missing."""
    try:
        from moco.report.folder import write
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InputError("the report needs matplotlib, which is not installed; pip install matplotlib") from error
    return write


def stamps(folders: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Returns (time of the last change, bytes) of each file read."""
    found = {}
    for folder in folders:
        for path in (*folder.rglob("*.jsonl"), *folder.rglob("*.json")):
            try:
                status = path.stat()
            except FileNotFoundError:  # a file that is being replaced
                continue
            found[path] = (status.st_mtime_ns, status.st_size)
    return found


def watch(folders: Sequence[Path], report: Callable[[], Sequence[Encoder]], pause: Callable[[], None]) -> None:
    """Calls `report` after each change, until all runs are finished."""
    seen = stamps(folders)
    while any(one.state == UNFINISHED for one in report()):
        while (now := stamps(folders)) == seen:
            pause()
        seen = now


def said(encoders: Sequence[Encoder]) -> str:
    """Returns text about the rank correlation for the terminal."""
    lines = [f"{which}: {found}" for which, found in correlations(encoders)]
    return "rank correlation of alignment + uniformity with accuracy\n  " + "\n  ".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="moco-report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_OR_SWEEP", help="folders of runs and of sweeps")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder for the page and its figures")
    parser.add_argument(
        "--neighbours",
        type=Number(int, 0, 10_000),
        default=0,
        metavar="N",
        help="show N images and their nearest others",
    )

    parser.add_argument(
        "--watch",
        type=Number(float, 0.1, 86_400),
        metavar="SECONDS",
        help="look for changes this often and write the page again, until every run is done; Ctrl-C ends it earlier",
    )

    def run() -> int:
        arguments = parser.parse_args(argv)
        if arguments.output.suffix or arguments.output.is_file():
            raise InputError(f"--output must be a folder, for page and figures, but {arguments.output} names a file")

        def report() -> list[Encoder]:
            encoders = read(arguments.runs)
            title = ", ".join(dict.fromkeys(one.sweep or one.name for one in encoders))
            if sum(one.compared for one in encoders) >= FEWEST:
                print(said(encoders))
            refresh = arguments.watch if any(one.state == UNFINISHED for one in encoders) else None
            for path in write(encoders, arguments.output, title, arguments.neighbours, refresh):
                print(path, flush=True)
            return encoders

        write = drawing()
        if arguments.watch:
            watch(arguments.runs, report, lambda: time.sleep(arguments.watch))
        else:
            report()
        return EXIT_OK

    return run_command(run)


def script() -> NoReturn:
    """Runs the console script."""
    end_with(main)


if __name__ == "__main__":
    end_with(main)
