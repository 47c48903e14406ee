"""The head table: every `--loss` by name. A new head is a class with `Head`'s call, anywhere, and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moco.errors import InputError
from moco.losses.debiased import DebiasedHead
from moco.losses.hard import HardContrastiveHead, SimpleHead
from moco.losses.in_batch import InBatchHead
from moco.losses.supcon import SupConHead
from moco.losses.weighted import PRESET_WEIGHTS, Across, Head, OneProcess, WeightedHead
from moco.schedules import value_at


@dataclass(frozen=True)
class Row:
    """head: its class. settings: its argument -> the option that says it. in_batch: its form for --moco-k 0, if any.
    temperature: what --moco-t is if it is not given. labels: it compares them."""

    head: type
    settings: Mapping[str, str] = field(default_factory=dict)
    in_batch: type | None = None
    temperature: float = 0.07
    labels: bool = False


_MIX = {
    "contr_w": "moco_contr_w",
    "temperature": "moco_t",
    "align_w": "moco_align_w",
    "align_alpha": "moco_align_alpha",
    "unif_w": "moco_unif_w",
    "unif_t": "moco_unif_t",
}
_T, _HARD = {"temperature": "moco_t"}, {"share": "moco_hard_alpha"}
_DEBIASED = {**_T, "prior": "moco_tau_plus"}

HEADS: dict[str, Row] = {
    **{name: Row(WeightedHead, _MIX, in_batch=InBatchHead) for name in PRESET_WEIGHTS},
    "simple": Row(SimpleHead, {"weight": "moco_simple_w"}),
    "hard": Row(HardContrastiveHead, _T | _HARD),
    "hard-simple": Row(SimpleHead, {"weight": "moco_simple_w"} | _HARD),
    "debiased": Row(DebiasedHead, _DEBIASED, temperature=0.5),
    "hcl": Row(DebiasedHead, _DEBIASED | {"beta": "moco_beta"}, temperature=0.5),
    "supcon": Row(SupConHead, _T, labels=True),
}


def make_head(options: Any, epoch: int = 0, across: Across | None = None) -> Head:
    """The head of a 0-based epoch that `options` (of main_moco.py) describe. InputError for what has no meaning.

    across: the other ranks, for a uniformity over all of them (`unif_global`) and for the heads without a queue.
    """
    row = HEADS[options.loss]
    settings: dict[str, Any] = {a: value_at(getattr(options, name), epoch) for a, name in row.settings.items()}
    kind = row.head if options.moco_k else row.in_batch
    if kind is None:
        with_batch = " or ".join(name for name, other in HEADS.items() if other.in_batch)
        raise InputError(
            f"--loss {options.loss} takes its negatives from the queue, so --moco-k must be at least 1; --moco-k 0 goes"
            f" with {with_batch}"
        )
    if issubclass(kind, WeightedHead):
        wanted = kind is InBatchHead or options.unif_global
        settings["across"] = across if across is not None and wanted else OneProcess()
        settings["intra_batch"] = not options.moco_unif_no_intra_batch
    return kind(**settings)


def curves(options: Any, epoch: int) -> dict[str, float]:
    """The settings that follow the epoch, by option, and their values in it: for the log."""
    settings = {name: getattr(options, name) for name in ("moco_t", "moco_unif_t")}
    return {name: value_at(setting, epoch) for name, setting in settings.items() if isinstance(setting, str)}


def check_labels(loss: str, labels: np.ndarray) -> None:
    """InputError if the head compares labels (int64 [n], -1 for none) and the data set has none."""
    if HEADS[loss].labels and not (labels >= 0).any():
        raise InputError(
            f"--loss {loss} compares labels and these images have none: give a train folder with a folder per class, or"
            " take another --loss"
        )
