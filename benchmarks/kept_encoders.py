"""Keeps encoders of sweeps in a JSON file.

So a sweep may be run in parts, on one machine or several. The file holds what the pages need of each encoder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_page import measured_where
from moco.errors import InputError
from moco.report.runs import MEASURED, Encoder, read
from moco.run.files import write_json
from moco.run.options import result_options


def add(file: Path, sweep: Path, needed: Sequence[str], defaults: Mapping[str, Any]) -> tuple[list[Encoder], list[str]]:
    """Adds the ended encoders of a sweep to `file`.

    Returns all encoders of the file, and lines about them for a page.
    needed: measures without which an encoder has not ended. defaults: those of the program's options.
    InputError if the encoders are of different commits.
    """
    swept = read([sweep])
    ended = [one for one in swept if one.state in MEASURED and all(name in one.measured for name in needed)]
    known = json.loads(file.read_text())["encoders"] if file.exists() else []
    rows = merged(known, [row(one, defaults) for one in ended])
    missing = sorted({one.name for one in swept} - {kept["name"] for kept in rows})
    encoders = [encoder(kept, defaults) for kept in rows]
    where = measured_where(encoders)
    write_json(file, {"measured": where, "missing": missing, "encoders": rows})
    lines = [where]
    if missing:
        lines.append(f"{len(missing)} of {len(swept)} encoders have not been measured.")
    return encoders, lines


def result_defaults(options: type) -> dict[str, Any]:
    """Returns the defaults of the options that change results.

    The place of the data is left out.
    The other options, such as a run's folder, belong to one machine, and differ between seeds of a setting.
    """
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    return {name: fields[name] for name in result_options(options) if name != "data"}


def row(one: Encoder, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entry of an encoder in the file.

    It holds name and state, the options that differ from the defaults, measures, commits and machine.
    """
    starts = [record for record in one.records if record.get("kind") == "start"]
    return {
        "name": one.name,
        "state": one.state,
        "options": {name: one.options[name] for name, usual in defaults.items() if one.options.get(name) != usual},
        "measured": one.measured,
        "commits": list(one.commits),
        "machine": starts[-1]["machine"],
    }


def encoder(kept: Mapping[str, Any], defaults: Mapping[str, Any]) -> Encoder:
    """Makes an encoder from its entry: the reverse of `row`."""
    records = [{"kind": "start", "git": commit, "machine": kept["machine"]} for commit in kept["commits"]]
    return Encoder(
        kept["name"],
        Path(kept["name"]),
        state=kept["state"],
        options={**defaults, **kept["options"]},
        records=records,
        measured=kept["measured"],
        commits=tuple(kept["commits"]),
    )


def merged(known: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns all rows by name; new rows replace known ones.

    InputError if they are of different commits.
    """
    rows = {kept["name"]: kept for kept in (*known, *new)}
    commits = sorted({commit[:12] for kept in rows.values() for commit in kept["commits"]})
    if len(commits) > 1:
        raise InputError(f"the encoders are of the commits {', '.join(commits)}: run all of them at one")
    return [rows[name] for name in sorted(rows)]
