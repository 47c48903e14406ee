"""Times contenders in turns, and writes the results of a benchmark.

Other work on a machine changes from second to second. So every round times every contender once.
A ratio is taken within one round, and the median over the rounds is the result.
Each script prints a table and writes results/TOPIC-cpu.json or -cuda.json, with machine, versions and commit.
performance_page.py writes docs/performance.md from these files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from moco.run.provenance import git_state, machine

RESULTS = Path(__file__).resolve().parent / "results"
Times = dict[str, list[float]]  # contender -> seconds, a round each


@dataclass
class Row:
    """Holds a line of the table.

    at_least, at_most: the target, if there is one. unit: that of value and target.
    """

    what: str
    against: str
    value: float
    unit: str = "×"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.value <= self.at_most if self.at_most is not None else None

    def cells(self) -> list[str]:
        bound, sign = (self.at_least, "≥") if self.at_least is not None else (self.at_most, "≤")
        target = "–" if bound is None else f"{sign} {number(bound)} {self.unit}"
        answer = {True: "yes", False: "**no**", None: "–"}[self.met]
        return [self.what, self.against, f"{number(self.value)} {self.unit}", target, answer]


def number(value: float) -> str:
    """Returns a value as text, with three figures.

    A benchmark is not more exact. Figures before the decimal point are never rounded.
    """
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that every script takes.

    doc: the script's docstring; its first line becomes the description.
    """
    options = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--trial", action="store_true", help="tiny sizes, to see that it runs; writes nothing")
    return options


def device_of(options: argparse.Namespace) -> torch.device:
    """Returns the device of --device; ends the program if it is missing."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda, but torch sees no GPU; run this where there is one, or on --device cpu")
    torch.manual_seed(0)
    if options.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # numbered: a loader's threads may start on another


def alternate(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    warm: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Times each contender once per round, after `warm` untimed rounds.

    Before it reads the clock it waits for the GPU.
    """
    times: Times = {name: [] for name in contenders}
    for turn in range(warm + rounds):
        for name, work in contenders.items():
            wait_for(device)
            start = clock()
            work()
            wait_for(device)
            if turn >= warm:
                times[name].append(clock() - start)
    return times


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(times: Times, above: str, below: str) -> float:
    """Returns the median over rounds of above / below."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def report(topic: str, options: argparse.Namespace, rows: list[Row], **more: Any) -> None:
    """Prints the table, and writes the file unless this is a trial.

    more: settings, and figures without a target.
    """
    device = torch.device(options.device)
    print("\n".join(["", *table([row.cells() for row in rows])]))
    if options.trial:
        return
    about = {
        "topic": topic,
        "device": options.device,
        "machine": machine(device),
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit(),
        "rounds": options.rounds,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**about, **more, "rows": [asdict(row) for row in rows]}, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+([^][{}]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)  # lists on a line
    (RESULTS / f"{topic}-{options.device}.json").write_text(text + "\n")


def commit() -> str:
    """Returns the commit, with "-dirty" if code differs from it.

    Only Python files count as code, so files that another benchmark has written change nothing.
    """
    changed = ["git", "-C", str(RESULTS.parent), "status", "--porcelain", "--", ":/*.py"]
    if subprocess.run(changed, capture_output=True, text=True).stdout:
        return git_state()
    return git_state().removesuffix("-dirty")


HEADINGS = ["what", "against", "measured", "target", "met"]


def table(rows: list[list[str]], headings: list[str] = HEADINGS) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
