"""Compares three losses on sentences, with three seeds each.

    python -m launch.sweep launch/recipes/sweep_novels.yaml --cluster local --parallel 2 -- NOVELS --classify MR CR
    python -m moco.sentences.evaluate CHECKPOINT MR CR --folds 3 --json baselines.json
    python -m benchmarks.sentence_study runs/sweeps/novels baselines.json

CHECKPOINT is that of any encoder of the sweep. The second command measures the baselines with it.
They are untrained encoders, the bag of words and the largest class.
Adds the encoders that have ended to benchmarks/results/novels.json, so the sweep may be run in parts.
Writes the tables between their two marks in docs/results.md, with the figures of the paper beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import kept_encoders
from benchmarks.results_page import PAGE, RESULTS, SUM, heads_table, paired, put
from moco.commands import run_command
from moco.errors import InputError
from moco.metrics.table import LOGGED
from moco.report.correlation import FEWEST, rank_correlation
from moco.report.runs import CR, DONE, MR, Encoder
from moco.sentences.evaluate import MAJORITY, UNTRAINED, WORDS
from moco.sentences.options import SentenceOptions

FILE = RESULTS / "novels.json"
SEEDS = 3
COLUMNS = {name: LOGGED[name].title for name in (MR, CR, "val_alignment", "val_uniformity")}
DEFAULTS = kept_encoders.result_defaults(SentenceOptions)
# Wang & Isola, table of BookCorpus: contrastive with τ .075; .9 alignment + .1 uniformity with t 5
PUBLISHED = {MR: (77.51, 73.76), CR: (83.86, 80.95)}


def with_seeds(encoders: Sequence[Encoder]) -> list[list[Encoder]]:
    """Returns the encoders of each setting that has enough seeds.

    It needs at least SEEDS seeds. The encoders are in the order of the seeds.
    """
    settings: dict[str, list[Encoder]] = {}
    for one in encoders:
        key = json.dumps({name: value for name, value in one.options.items() if name in DEFAULTS and name != "seed"})
        settings.setdefault(key, []).append(one)
    return [sorted(its, key=lambda one: one.options["seed"]) for its in settings.values() if len(its) >= SEEDS]


def pure(settings: Sequence[Sequence[Encoder]], loss: str) -> Sequence[Encoder]:
    """Returns the encoders with the paper's best setting of a loss.

    InputError if they are missing.
    """
    weights = {"infonce": (1, 0, 0), "align-uniform": (0, 0.9, 0.1)}[loss]
    for its in settings:
        options = its[0].options
        if (options["moco_contr_w"], options["moco_align_w"], options["moco_unif_w"]) == weights:
            return its
    raise InputError(f"the sweep has no {SEEDS} seeds of {loss} with the weights {weights}: run it to its end first")


def order(settings: Sequence[Sequence[Encoder]]) -> list[str]:
    """Returns a table of contrastive minus align + uniform accuracies.

    The differences over the seeds are tested with a paired t-test. Those of the paper stand beside them.
    """
    contrastive, uniform = pure(settings, "infonce"), pure(settings, "align-uniform")
    lines = ["| accuracy | contrastive less align + uniform | paired t-test, p | the same as published |"]
    lines.append("|---|---:|---:|---:|")
    for name, (first, second) in PUBLISHED.items():
        a = [one.measured[name] for one in contrastive]
        b = [one.measured[name] for one in uniform]
        _, told, p = paired(a, b)
        lines.append(f"| {COLUMNS[name]} | {told} | {p:.2g} | {first - second:+.2f} |")
    return lines


def baselines(found: Mapping[str, Any]) -> list[str]:
    """Returns the table of the baselines.

    found: the content of the --json file of moco.sentences.evaluate.
    """
    lines = ["| baseline | MR accuracy | CR accuracy |", "|---|---:|---:|"]
    for name in (UNTRAINED, WORDS, MAJORITY):
        cells = [f"{found['datasets'][data]['accuracies'][name]['accuracy']:.1f}" for data in ("MR", "CR")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def predicts(encoders: Sequence[Encoder]) -> list[str]:
    """Returns a line about the rank correlation with MR accuracy.

    It is that of alignment + uniformity, without collapsed encoders.
    Fewer than FEWEST encoders give no line.
    """
    measured = [one.measured for one in encoders if one.state == DONE]
    if len(measured) < FEWEST:
        return []
    (sum_of,) = SUM.values()
    found = rank_correlation([sum_of(its) for its in measured], [its[MR] for its in measured])
    return ["", f"Rank correlation of alignment + uniformity with MR accuracy over the sweep: {found}."]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    parser.add_argument("baselines", type=Path, help="--json file of moco.sentences.evaluate")
    o = parser.parse_args()
    encoders, about = kept_encoders.add(FILE, o.sweep, [MR, CR], DEFAULTS)
    settings = with_seeds(encoders)
    lines = heads_table([one for its in settings for one in its], COLUMNS)
    lines += ["", *baselines(json.loads(o.baselines.read_text())), "", *order(settings)]
    PAGE.write_text(put(PAGE.read_text(), "novels", [*lines, *predicts(encoders), "", *about]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
