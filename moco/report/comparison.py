"""Compares encoders: differing options, and correlation of measures with accuracy."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moco.errors import InputError, flag
from moco.metrics.table import LOGGED
from moco.pretrain.options import PretrainOptions
from moco.report.correlation import RankCorrelation, rank_correlation
from moco.report.runs import ACCURACIES, COLLAPSE, DONE, Encoder
from moco.run.options import result_options

DEFAULTS = {field.name: field.default for field in dataclasses.fields(PretrainOptions)}


def accuracy_measure(encoders: Sequence[Encoder]) -> str | None:
    """Returns the accuracy that colours and correlations use; None without one.

    It is one of linear probe, kNN, MR, CR and depth's error: the one that most encoders have, of equals the first. They
    are never mixed.
    """
    count = Counter(name for one in encoders if one.compared for name in ACCURACIES if name in one.measured)
    return max(ACCURACIES, key=lambda name: count[name]) if count else None


def predicts(encoders: Sequence[Encoder], *, collapsed: bool) -> RankCorrelation:
    """Returns Spearman's ρ of validation alignment + uniformity against accuracy.

    It is near -1 if the sum predicts accuracy, near 1 if it predicts depth's error. collapsed: include collapsed
    encoders. Their values are far from the others, so they raise |ρ|. InputError if there are too few encoders or all
    are equal.
    """
    measure = accuracy_measure(encoders)
    states = (DONE, COLLAPSE) if collapsed else (DONE,)
    used = [one.measured for one in encoders if one.state in states and measure in one.measured]
    return rank_correlation([sum_of(m) for m in used], [m[str(measure)] for m in used])


def correlations(encoders: Sequence[Encoder]) -> list[tuple[str, str]]:
    """Returns (name of the group, `predicts` as text or the reason against).

    The groups are all encoders, then those without collapsed ones.
    """
    found = []
    for which, collapsed in (("all comparable encoders", True), ("without collapsed ones", False)):
        try:
            found.append((which, f"{predicts(encoders, collapsed=collapsed)}"))
        except InputError as error:
            found.append((which, f"none: {error}"))
    return found


def sum_of(measured: Mapping[str, float]) -> float:
    """Returns alignment + uniformity."""
    return measured["val_alignment"] + measured["val_uniformity"]


def published(encoders: Sequence[Encoder]) -> dict[str, list[Encoder]]:
    """Returns, for each measure, encoders with measured and published values.

    Only comparable encoders count.
    """
    found = {
        name: [one for one in encoders if one.compared and name in one.measured and name in one.published]
        for name in LOGGED
    }
    return {name: some for name, some in found.items() if some}


def against_published(measure: str, encoders: Sequence[Encoder]) -> str:
    """Returns text: mean of measured - published values, and their rank correlation."""
    ours = [one.measured[measure] for one in encoders]
    theirs = [one.published[measure] for one in encoders]
    shift = (sum(ours) - sum(theirs)) / len(ours)
    words = f"measured minus published, mean of {len(ours)}: {shift:+.{LOGGED[measure].digits}f}"
    try:
        return f"{words}; rank correlation {rank_correlation(theirs, ours)}"
    except InputError as error:
        return f"{words}; no rank correlation: {error}"


def differing(encoders: Sequence[Encoder], names: Iterable[str]) -> list[str]:
    """Returns the options of `names` whose values differ between encoders.

    An option counts only where it has an effect. Encoders without known options are left out.
    """
    known = [one for one in encoders if one.options]
    return [name for name in names if len({json.dumps(one.option(name)) for one in known}) > 1]


def tip(one: Encoder) -> str:
    """Returns an encoder's tooltip: its measures, then its changed options."""
    lines = [one.name, *([f"{one.state}: {one.why}"] if one.why else [])]
    lines += [f"{row.heading}: {one.measured[name]:.4g}" for name, row in LOGGED.items() if name in one.measured]
    changed = [name for name in result_options(PretrainOptions) if one.option(name) not in (None, DEFAULTS.get(name))]
    return "\n".join([*lines, "", *(f"{flag(name)} {written(one.option(name))}" for name in changed)])


def written(value: Any) -> str:
    """Formats an option's value as on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass
class TemperatureCurve:
    """Holds encoders that differ only in temperature and seed.

    They have the contrastive loss.
    """

    label: str
    encoders: list[Encoder]

    def points(self, measure: str) -> tuple[list[float], list[float]]:
        """Returns (rising temperatures, the measure's mean over each one's seeds)."""
        values: dict[float, list[float]] = {}
        for one in self.encoders:
            if measure in one.measured:
                values.setdefault(one.temperature or 0.0, []).append(one.measured[measure])
        return sorted(values), [sum(values[t]) / len(values[t]) for t in sorted(values)]


def temperature_curves(encoders: Sequence[Encoder], names: Sequence[str]) -> list[TemperatureCurve]:
    """Groups compared encoders by their other options; temperatures must differ.

    In a group, other options of `names` are equal, except the seed. It has two or more temperatures.
    """
    using = [one for one in encoders if one.compared and one.temperature]
    others = [name for name in differing(using, names) if name not in ("moco_t", "seed")]
    groups: dict[str, list[Encoder]] = {}
    for one in using:
        key = ", ".join(f"{name} {one.option(name)}" for name in others if one.option(name) is not None)
        groups.setdefault(key, []).append(one)
    return [
        TemperatureCurve(label, group) for label, group in groups.items() if len({one.temperature for one in group}) > 1
    ]
