"""Reads encoders from a CSV file, with the figures of a paper.

    loss,moco_t,moco_align_w,moco_unif_w,lr,published_top1
    infonce,0.07,,,0.12,80.46
    align-uniform,,0.98,0.96,0.12,81.15

A column is an option of the program that the sweep trains with, or `published_` and a measure: top1 (the linear
probe's), knn_top1, val_mr_acc1, val_alignment, ... An empty cell leaves the option, or the figure, out. A list has
blanks between its values: 155 170 185.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moco.errors import InputError, did_you_mean
from moco.metrics.table import LOGGED

PUBLISHED = "published_"
_SHORT = {"top1": "lincls_top1"}


@dataclass(frozen=True)
class Row:
    """Holds one row.

    line: in the file, from 1 on. published: figures by the name of the measure in logs.
    """

    line: int
    options: dict[str, Any]
    published: dict[str, float]


def read(path: Path) -> list[Row]:
    """Reads the rows of the file, in its order.

    InputError with the line if it is not such a table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read the encoders in {path}: {why}; give a CSV file in UTF-8") from error
    header = [name.strip() for name in lines[0]] if lines else []
    if not header or not all(header) or len(set(header)) < len(header):
        raise InputError(f"{path} must begin with a line of column names, each once and none empty")
    measures = {name: _measure(name, path) for name in header if name.startswith(PUBLISHED)}
    rows = []
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(cells)} cells, but the header has {len(header)}: make them equal"
            )
        filled = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
        options = {name: _value(cell) for name, cell in filled.items() if name not in measures}
        published = {
            measures[name]: _figure(cell, f"{path}, row {number}, {name}")
            for name, cell in filled.items() if name in measures
        }  # fmt: skip
        rows.append(Row(number, options, published))
    if not rows:
        raise InputError(f"{path} has column names but no rows: add a row for each encoder")
    return rows


def _measure(column: str, path: Path) -> str:
    """Returns the measure's name in logs for a column of published figures."""
    name = column.removeprefix(PUBLISHED)
    measure = _SHORT.get(name, name)
    if measure not in LOGGED:
        known = [*_SHORT, *LOGGED]
        hint = did_you_mean(name, known) or f"; take one of {', '.join(known)}"
        raise InputError(f"{path}: the column {column} names no known measure{hint}")
    return measure


def _value(cell: str) -> Any:
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    words = cell.split()
    return words if len(words) > 1 else cell


def _figure(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {cell!r} is not a finite number; leave the cell empty if none is published")
    return value
