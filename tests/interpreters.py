"""The portable tests with the Python that runs this, and a table of docs/installation.md about several of them.

    python -m tests.interpreters --record
    python -m tests.interpreters --quick --record

Portable: neither slow nor in need of a GPU, and without Slurm, kills of whole runs, and the report's page in a browser.
--quick takes the files of `make quick` only. `make test-oldest` and its workflow call this without --record.
Each recorded result is added to benchmarks/results/interpreters.json, and the table is written anew.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

from moco.commands import run_command
from moco.run.files import write_json
from moco.run.provenance import git_state

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "interpreters.json"
PAGE = ROOT / "docs" / "installation.md"
FOLDERS = ("gpu", "reliability", "slurm")  # not portable
PORTABLE = [
    "-m",
    "not slow and not gpu",
    *(f"--ignore=tests/{name}" for name in FOLDERS),
    "--ignore=tests/report/test_page.py",
]
COLUMNS = ("system", "python", "torch", "torchvision", "tests", "passed", "failed", "skipped", "date", "commit")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the files of `make quick` only")
    parser.add_argument("--record", action="store_true", help="add the result to the table of docs/installation.md")
    o, passed_on = parser.parse_known_args()
    chosen = [*PORTABLE, *(quick_files() if o.quick else [])]
    commit = git_state()  # before the tests: what they were started from
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run([*words, *chosen, *passed_on], cwd=ROOT, env=environment).returncode
        if o.record:
            add(row("quick" if o.quick else "portable", counts(report), commit))
    return code


def quick_files() -> list[str]:
    """The files that `make quick` tests."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    line = re.search(r"^QUICK := (.*)$", text, re.MULTILINE)
    assert line is not None
    return line[1].split()


def counts(report: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped, from pytest's JUnit file."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def row(tests: str, result: dict[str, int], commit: str) -> dict[str, Any]:
    import torchvision  # after moco, which makes it importable beside a CPU build of torch

    return {
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "tests": tests,
        **result,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
    }


def add(row: dict[str, Any]) -> None:
    """Puts the row in place of an earlier one of the same versions and tests; writes file and table."""
    from benchmarks.results_page import plain_table, put, replaced

    rows = replaced(RESULTS, row, ("system", "python", "torch", "tests"))
    rows.sort(key=lambda one: [[int(part) for part in re.findall(r"\d+", one[name])] for name in ("python", "torch")])
    write_json(RESULTS, rows)
    PAGE.write_text(put(PAGE.read_text(), "interpreters", plain_table(rows, COLUMNS)))


if __name__ == "__main__":
    sys.exit(run_command(main))
