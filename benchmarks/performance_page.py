"""Writes the tables of docs/performance.md from benchmarks/results/*.json.

    python -m benchmarks.performance_page

A table stands between `<!-- TOPIC-DEVICE -->` and `<!-- end -->`. Without its file "not measured" stands there.
The prose around the tables is written by hand and is not changed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, Row, number, table
from moco.timing import as_line

PAGE = RESULTS.parent.parent / "docs" / "performance.md"
PLACE = re.compile(r"(<!-- ([a-z_]+-(?:cpu|cuda|counted)) -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = ("images", "images of the reference", "keys", "labels and indices", "gradients")


def short(commit: str) -> str:
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def about(record: dict[str, Any]) -> str:
    machine = record["machine"]
    threads = f", {record['threads']} thread{'s' * (record['threads'] > 1)}" if "threads" in record else ""
    return (
        f"{machine['device']}, {record['cores']} cores{threads}; torch {machine['torch']}, Python {machine['python']};"
        f" commit {short(record['commit'])}; medians of {record['rounds']} rounds"
    )


def traffic(record: dict[str, Any]) -> list[str]:
    """Returns the table of megabytes per rank and step.

    The numbers are modelled; counted ones follow in brackets.
    """

    def cell(world: str, kind: str) -> str:
        source, name = ("counted_reference", "images") if kind.endswith("reference") else ("counted", kind)
        seen = record[source].get(world, {}).get(name)
        model = number(record["modelled"][world][kind] / 1e6)
        return model if seen is None else f"{model} ({number(seen / 1e6)})"

    rows = [[f"{int(world):,}", *(cell(world, kind) for kind in KINDS)] for world in record["modelled"]]
    return ["", *table(rows, ["ranks", *(f"{kind}, MB" for kind in KINDS)])]


def launches(record: dict[str, Any]) -> str:
    """Returns the table of a step's kernels and gigabytes by stage.

    Each number of ranks has columns of its own.
    """
    counted = record["counted"]

    def cells(name: str, of: list[dict[str, int]]) -> list[str]:
        return [name, *(f"{stage[unit]:,}" if unit == "kernels" else f"{stage[unit] / 1e9:.2f}"
                        for stage in of for unit in ("kernels", "bytes"))]  # fmt: skip

    nothing = {"kernels": 0, "bytes": 0}
    names = list(dict.fromkeys(name for stages in counted.values() for name in stages))
    rows = [cells(name, [stages.get(name, nothing) for stages in counted.values()]) for name in names]
    sums = [{unit: sum(s[unit] for s in stages.values()) for unit in nothing} for stages in counted.values()]
    headings = [f"{unit}, {ranks} GPU{'s' * (ranks != '1')}" for ranks in counted for unit in ("kernels", "GB")]
    lines = table([*rows, cells("all", sums)], ["stage", *headings])
    below = f"`{record['options']}`; torch {record['torch']}, commit {short(record['commit'])}."
    return "\n".join([*lines, "", below, ""])


def rounding(record: dict[str, Any]) -> str:
    """Returns the table of the loss head's errors.

    They are the largest ones for each kind of product and each temperature.
    """
    of_temperatures = record["errors"]
    headings = [f"{what}, τ {t}" for t in of_temperatures for what in ("value", "gradient")]
    products = next(iter(of_temperatures.values()))
    rows = [
        [name, *(f"{of[name][what]:.1e}" for of in of_temperatures.values() for what in ("value", "gradient"))]
        for name in products
    ]
    machine = record["machine"]
    below = f"{machine['device']}; torch {machine['torch']}; commit {short(record['commit'])}."
    return "\n".join([*table(rows, ["products", *headings]), "", below, ""])


def section(name: str, results: Path) -> str:
    path = results / f"{name}.json"
    if not path.exists():
        return "not measured\n"
    record = json.loads(path.read_text())
    if "counted" in record and "rows" not in record:
        return launches(record)
    if "errors" in record:
        return rounding(record)
    lines = table([Row(**row).cells() for row in record["rows"]])
    if "modelled" in record:
        lines += traffic(record)
    if "shares" in record:
        lines += ["", f"Where the step's time goes: {as_line(record['shares'])}."]
    return "\n".join([*lines, "", about(record) + ".", ""])


def filled(page: str, results: Path = RESULTS) -> str:
    return PLACE.sub(lambda place: place[1] + section(place[2], results) + place[3], page)


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text()))
    print(f"{PAGE.name} is written from {len(list(RESULTS.glob('*-*.json')))} files")


if __name__ == "__main__":
    main()
