"""Measures the report's page of few and of many runs in Chromium.

python -m benchmarks.report_page

It measures the times to write, load, sort and filter the page. Writes the table in docs/report.md.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.results_page import put
from moco.report.__main__ import main as report
from moco.run.files import write_text
from moco.run.provenance import git_state, processor
from tests.report.browser import Browser
from tests.report.made_runs import sweep

PAGE = Path(__file__).resolve().parent.parent / "docs" / "report.md"
LOADED = "performance.timing.loadEventEnd - performance.timing.navigationStart"
SORTED = """(() => { const start = performance.now();
  document.querySelector('#encoders thead th:nth-child(3) button').click();
  document.body.offsetHeight; return performance.now() - start; })()"""
FILTERED = """(() => { const start = performance.now(); const field = document.getElementById('filter');
  field.value = '01'; field.dispatchEvent(new Event('input'));
  document.body.offsetHeight; return performance.now() - start; })()"""


def elements(count: int) -> dict[str, dict[str, Any]]:
    draw = random.Random(0)
    return {
        f"e{i:03d}": dict(
            probe=draw.uniform(20, 90), knn=draw.uniform(20, 80), alignment=draw.uniform(0.05, 1),
            uniformity=draw.uniform(-3.5, -0.5), moco_t=draw.choice([0.05, 0.1, 0.2, 0.5]),
        )
        for i in range(count)
    }  # fmt: skip


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name, Browser(Path(name) / "profile") as browser:
        version = browser("Browser.getVersion")["product"]
        for count in (2, 300):
            made = sweep(Path(name) / f"s{count}", elements(count))
            start = time.perf_counter()
            report([str(made), "--output", str(Path(name) / f"out{count}")])
            wrote = time.perf_counter() - start
            page = Path(name) / f"out{count}" / "index.html"
            browser.open(page, 1300, 900)
            shown = [browser.run(script) for script in (LOADED, SORTED, FILTERED)]
            milliseconds = " | ".join(f"{value:.0f}" for value in shown)
            rows.append(f"| {count} | {page.stat().st_size / 1e6:.1f} | {wrote:.0f} | {milliseconds} |")
    lines = [
        "| made-up runs | page [MB] | written in [s] | loaded in [ms] | sorted in [ms] | filtered in [ms] |",
        "|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        f"Written by `python -m benchmarks.report_page` at commit {git_state()[:7]}: {version}, {processor()}, "
        f"torch {torch.__version__}; one reading each, other processes ran beside it.",
    ]
    write_text(PAGE, put(PAGE.read_text(), "rows", lines))


if __name__ == "__main__":
    main()
