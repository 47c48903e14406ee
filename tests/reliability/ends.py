"""Counts good and bad ends of runs on a busy machine.

    python -m tests.reliability.ends [--ends 1000] [--minutes 60]
    python -m tests.reliability.ends --ordinary-end     # the same, with sys.exit in place of the ordered end

`make soak-ends` runs it. It writes the tables of docs/reliability.md.
Every run is as short as possible: the digits, one epoch, a small encoder.
The runs are real ones, new or resumed.
They are started as users start them: alone, by torchrun, or by submitit on this machine.
A run is bad if it ends with a code other than 0, or does not print its last line.
The runs use a copy of the code. With --ordinary-end, `end_process` of the copy calls sys.exit at once.

benchmarks/results/ends.json holds every soak, with and without the ordered end.
A thousand ends take hours on a small machine, so they may be counted in parts.
docs/reliability.md shows the sums, and each part below them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measuring import commit
from benchmarks.results_page import shortened
from moco.run.provenance import processor

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE, RESULTS = ROOT / "docs" / "reliability.md", ROOT / "benchmarks" / "results" / "ends.json"
BEGIN, END = "<!-- written by tests/reliability/ends.py: begin -->", "<!-- ends: end -->"
COPIED = ("moco", "launch", "tests", "main_moco.py", "main_lincls.py")
TINY = ["-a", "smallcnn", "--moco-k", "64", "--moco-dim", "16", "-b", "512", "--eval-freq", "0", "--seed", "1"]
DIGITS = ["--dataset", "digits", *TINY]
LIMIT_S = 600.0  # of one run; a run that hangs at its end is bad too
CRASH = "terminate called"


@dataclass(frozen=True)
class Way:
    """Describes a way to start a run.

    words: those before the options of main_moco. ranks: number of ranks of the run.
    """

    name: str
    words: tuple[str, ...]
    ranks: int = 1
    resumed: bool = False
    options: tuple[str, ...] = tuple(DIGITS)


MAIN = ("main_moco.py",)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "main_moco.py")
SUBMITIT = ("-m", "launch.submitit_job", "--cluster", "local", "--tasks-per-node")
SCRIPT = ("-c", "from moco.pretrain.__main__ import script; script()")  # what `moco-pretrain` is
BUSY = ("--dataset", "tests.reliability.busy_threads:digits", "--image-size", "32", *TINY)  # else 224
WAYS = [
    Way("1 rank", MAIN),
    Way("1 rank, resumed", MAIN, resumed=True),
    Way("2 ranks, torchrun", TORCHRUN, 2),
    Way("1 rank, moco-pretrain", SCRIPT),
    Way("2 ranks, torchrun, resumed", TORCHRUN, 2, resumed=True),
    Way("1 rank, submitit", (*SUBMITIT, "1", "--"), 1),
    Way("2 ranks, submitit, resumed", (*SUBMITIT, "2", "--"), 2, resumed=True),
    Way("1 rank, a thread of the data set inside torch", MAIN, options=BUSY),
]


def take_code(folder: Path, ordinary: bool) -> Path:
    """Copies the code into `folder` and returns it.

    ordinary: put sys.exit in place of the ordered end.
    """
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    if ordinary:
        commands = folder / "moco" / "commands.py"
        text = commands.read_text()
        ordered = "    threading._shutdown()"
        assert text.count(ordered) == 1, "end_process is not as this script knows it"
        commands.write_text(text.replace(ordered, f"    sys.exit(code)\n{ordered}"))
    return folder


class Soak:
    """Starts runs in `folder` from the copy of the code in `code`."""

    def __init__(self, folder: Path, code: Path) -> None:
        self.folder, self.code = folder, code
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.environment = {**os.environ, **threads, "PYTHONPATH": str(code), "TQDM_DISABLE": "1"}

    def start(self, way: Way, output: Path, *more: str) -> tuple[int, str]:
        """Runs to the end; returns (exit code, printed text)."""
        command = [sys.executable, *way.words, *way.options, *more, "--output-dir", str(output)]
        log = output.with_suffix(".out")
        with log.open("w") as file:
            run = subprocess.Popen(
                command, cwd=self.code, env=self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
            try:
                code = run.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                run.kill()
                code = run.wait()
        for job in output.glob("jobs/*/*/*.out"):  # what submitit's ranks printed
            with log.open("a") as file:
                file.write(job.read_text(errors="replace"))
        return code, log.read_text(errors="replace")

    def begin(self) -> None:
        """Trains one epoch with 1 and with 2 ranks, for resumed runs."""
        for way in (WAYS[0], WAYS[2]):
            code, text = self.start(way, self.folder / f"begun-{way.ranks}", "--epochs", "1")
            if code != 0:
                raise SystemExit(f"error: the first run ended with code {code}:\n{text[-2000:]}")

    def one(self, way: Way, number: int) -> dict[str, Any]:
        """Starts one run and returns the record of its end.

        Its folder is removed if it ended well.
        """
        output = self.folder / f"run-{number}"
        more = ["--epochs", "1"]
        if way.resumed:
            shutil.copytree(self.folder / f"begun-{way.ranks}", output)
            more = ["--epochs", "2", "--resume", "auto"]
        code, text = self.start(way, output, *more)
        told = "done; next" in text
        bad = code != 0 or not told
        if not bad:
            shutil.rmtree(output)
            output.with_suffix(".out").unlink()
        return {"way": way.name, "ranks": way.ranks, "code": code, "bad": bad, "done": told, "crash": CRASH in text,
                "tail": text[-600:] if bad else ""}  # fmt: skip


def count(soak: Soak, ends: int, minutes: float, together: int) -> list[dict[str, Any]]:
    """Runs until `ends` ranks have ended or the time is over.

    together: number of runs at a time. Returns one record for each run.
    """
    deadline, lock, records = time.monotonic() + 60 * minutes, threading.Lock(), []
    ways, begun = itertools.cycle(enumerate(WAYS)), itertools.count(1)
    left = ends

    def work() -> None:
        nonlocal left
        while True:
            with lock:
                if left <= 0 or time.monotonic() > deadline:
                    return
                (_, way), number = next(ways), next(begun)
                left -= way.ranks
            record = soak.one(way, number)
            with lock:
                records.append(record)
                print(f"{sum(r['ranks'] for r in records)} ends, {sum(r['bad'] for r in records)} bad", flush=True)

    with ThreadPoolExecutor(together) as pool:
        for running in [pool.submit(work) for _ in range(together)]:
            running.result()
    return records


def summary(records: list[dict[str, Any]], together: int, minutes: float) -> dict[str, Any]:
    """Returns the entry of one soak in the file of results."""
    rows = []
    for way in WAYS:
        own = [record for record in records if record["way"] == way.name]
        codes = Counter(str(record["code"]) for record in own if record["bad"])
        bad = sum(record["bad"] for record in own)
        after = sum(record["bad"] and record["done"] for record in own)
        rows.append({"way": way.name, "runs": len(own), "ends": way.ranks * len(own), "bad runs": bad,
                     "bad after their last line": after, "codes": codes})  # fmt: skip
    return {
        "date": str(date.today()),
        "commit": commit(),
        "cores": os.cpu_count(),
        "machine": processor(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "together": together,
        "minutes": round(minutes, 1),
        "rows": rows,
        "tails": [record["tail"] for record in records if record["bad"]][:20],
    }


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the tables of docs/reliability.md.

    There is one with the ordered end and one without it. Each has the sums over the soaks, then the soaks.
    """
    parts = []
    for name, title in (("ordered", "As it is"), ("ordinary", "With `sys.exit` in its place")):
        soaks = results.get(name, [])
        if not soaks:
            parts += [f"{title}: not measured.", ""]
            continue
        rows = [row for soak in soaks for row in soak["rows"]]
        flag = " --ordinary-end" if name == "ordinary" else ""
        parts += [
            f"{title}: {total(rows, 'ends')} ends of ranks, **{total(rows, 'bad runs')} bad**."
            f" `python -m tests.reliability.ends{flag}`:",
            "",
            "| started as | runs | ends of ranks | bad runs | their exit codes |",
            "|---|---:|---:|---:|---|",
        ]
        for way in dict.fromkeys(row["way"] for row in rows):
            its = [row for row in rows if row["way"] == way]
            counted = sum((Counter(row["codes"]) for row in its), Counter())
            codes = ", ".join(f"{code} ({times} ×)" for code, times in counted.items()) or "–"
            numbers = " | ".join(str(total(its, key)) for key in ("runs", "ends", "bad runs"))
            parts.append(f"| {way} | {numbers} | {codes} |")
        parts += ["", *map(about, soaks), ""]
    return "\n".join(parts).rstrip()


def total(rows: list[dict[str, Any]], key: str) -> int:
    return sum(row[key] for row in rows)


def about(soak: dict[str, Any]) -> str:
    """Describes one soak in a line."""
    return (
        f"- {total(soak['rows'], 'ends')} ends, {total(soak['rows'], 'bad runs')} bad: {soak['date']}, commit"
        f" {shortened(soak['commit'])}, {soak['minutes']:g} minutes on {soak['cores']} cores of {soak['machine']};"
        f" {soak['together']} runs at a time, load {soak['load'][0]:g}"
    )


def write_page(results: dict[str, list[dict[str, Any]]]) -> None:
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{PAGE} has lost the marks between which the table stands"
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ends", type=int, default=1000, help="of ranks")
    parser.add_argument("--minutes", type=float, default=60, help="no run is begun after so many")
    parser.add_argument("--together", type=int, default=2 * (os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--ordinary-end", action="store_true", help="sys.exit in place of the ordered end")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results; not the page, if another")
    o = parser.parse_args(argv)
    results = json.loads(o.results.read_text()) if o.results.exists() else {}
    if not all(isinstance(soaks, list) for soaks in results.values()):
        parser.error(f"{o.results} is not a file of this version: move it away")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        soak = Soak(folder, take_code(folder / "code", o.ordinary_end))
        soak.begin()
        records = count(soak, o.ends, o.minutes, o.together)
    result = summary(records, o.together, (time.monotonic() - started) / 60)
    results.setdefault("ordinary" if o.ordinary_end else "ordered", []).append(result)
    o.results.parent.mkdir(parents=True, exist_ok=True)
    o.results.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if o.results == RESULTS:
        write_page(results)
    bad = total(result["rows"], "bad runs")
    print("\n".join([about(result), *result["tails"]]))
    return 0 if o.ordinary_end or bad == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
