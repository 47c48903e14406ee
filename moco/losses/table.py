"""The losses by name, with one row for each.

A new loss is a class that is called like `moco.losses.Loss`, in its own file, and a row here.
A loss outside this project needs no row: `--loss module:Class`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moco import plugins
from moco.errors import InputError
from moco.losses.batch_keys import BatchKeysDecoupledLoss, BatchKeysLoss
from moco.losses.debiased import DebiasedLoss
from moco.losses.decoupled import DecoupledLoss, InBatchDecoupledLoss
from moco.losses.hard import HardContrastiveLoss, SimpleLoss
from moco.losses.in_batch import InBatchLoss
from moco.losses.logsumexp import whole_logsumexp
from moco.losses.supcon import SupConLoss
from moco.losses.weighted import PRESET_WEIGHTS, Across, Loss, OneProcess, WeightedLoss
from moco.schedules import value_at


@dataclass(frozen=True)
class Row:
    """Holds a loss and its options.

    loss: its class.
    settings: argument of the class -> option of main_moco.py.
    in_batch, batch_keys: the classes for --moco-k 0 and for --keys batch, or None.
    temperature: the default of --moco-t.
    labels: True if it compares labels.
    fixed: arguments of the class that no option sets.
    """

    loss: type
    settings: Mapping[str, str] = field(default_factory=dict)
    in_batch: type | None = None
    batch_keys: type | None = None
    temperature: float = 0.07
    labels: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)


_MIX = {
    "contr_w": "moco_contr_w",
    "temperature": "moco_t",
    "align_w": "moco_align_w",
    "align_alpha": "moco_align_alpha",
    "unif_w": "moco_unif_w",
    "unif_t": "moco_unif_t",
}
_T = {"temperature": "moco_t"}
_HARD = {"share": "moco_hard_alpha"}
_DEBIASED = {**_T, "prior": "moco_tau_plus"}

LOSSES: dict[str, Row] = {
    **{name: Row(WeightedLoss, _MIX, in_batch=InBatchLoss, batch_keys=BatchKeysLoss) for name in PRESET_WEIGHTS},
    "simple": Row(SimpleLoss, {"weight": "moco_simple_w"}),
    "hard": Row(HardContrastiveLoss, _T | _HARD),
    "hard-simple": Row(SimpleLoss, {"weight": "moco_simple_w"} | _HARD),
    "debiased": Row(DebiasedLoss, _DEBIASED, temperature=0.5),
    "hcl": Row(DebiasedLoss, _DEBIASED | {"beta": "moco_beta"}, temperature=0.5),
    "dcl": Row(DecoupledLoss, _T, InBatchDecoupledLoss, BatchKeysDecoupledLoss, temperature=0.1),
    "dclw": Row(DecoupledLoss, _T, InBatchDecoupledLoss, BatchKeysDecoupledLoss, temperature=0.1, fixed={"sigma": 0.5}),
    "supcon": Row(SupConLoss, _T, labels=True),
}


def make_loss(options: Any, across: Across | None = None) -> Loss:
    """Builds the loss that the options of main_moco.py describe, for epoch 0.

    across: the other ranks, for losses without a queue and for --unif-global.
    InputError if the options contradict each other.
    """
    if plugins.is_outside(options.loss):
        return _outside(options)
    row = LOSSES[options.loss]
    settings: dict[str, Any] = {
        argument: value_at(getattr(options, name), 0) for argument, name in row.settings.items()
    } | dict(row.fixed)
    from_batch, words = (row.batch_keys, "--keys batch") if options.keys == "batch" else (row.in_batch, "--moco-k 0")
    kind = row.loss if options.moco_k else from_batch
    if kind is None:
        with_batch = ", ".join(name for name, other in LOSSES.items() if other.in_batch)
        raise InputError(
            f"--loss {options.loss} takes its negatives from the queue, so --moco-k must be at least 1; {words}"
            f" works with: {with_batch}"
        )
    arguments = inspect.signature(kind).parameters
    if issubclass(kind, WeightedLoss):
        wanted = not options.moco_k or options.unif_global
        settings["across"] = across if across is not None and wanted else OneProcess()
        settings["intra_batch"] = not options.moco_unif_no_intra_batch
        if kind is InBatchLoss:
            settings["negatives"] = options.in_batch
    elif "across" in arguments:
        settings["across"] = across or OneProcess()
    if options.reference_step and "logsumexp" in arguments:
        settings["logsumexp"] = whole_logsumexp
    return kind(**settings)


def _outside(options: Any) -> Loss:
    loss = plugins.find("--loss", options.loss, options.loss_arg)()
    if not callable(loss):
        raise InputError(
            f"--loss {options.loss} gives a {type(loss).__name__}; it must give an object to call: loss(q, k, queue)"
        )
    return loss


def check_loss(options: Any) -> None:
    """Raises InputError if the options describe no loss.

    A module:Class is imported but not built.
    """
    plugins.check_unused("--loss", options.loss, options.loss_arg)
    if plugins.is_outside(options.loss):
        plugins.find("--loss", options.loss, options.loss_arg)
    else:
        make_loss(options)


def set_epoch(loss: Loss, options: Any, epoch: int) -> None:
    """Sets the loss's settings that are curves over epochs.

    epoch: counted from 0.
    For a module:Class it calls the loss's method `set_epoch(epoch)`, if there is one.
    """
    if plugins.is_outside(options.loss):
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(epoch)
        return
    for argument, name in LOSSES[options.loss].settings.items():
        setting = getattr(options, name)
        if isinstance(setting, str):
            setattr(loss, argument, value_at(setting, epoch))


def curves(options: Any, epoch: int) -> dict[str, float]:
    """Returns the values in `epoch` of settings that are curves.

    They are named by option, for the log.
    """
    settings = {name: getattr(options, name) for name in ("moco_t", "moco_unif_t")}
    return {name: value_at(setting, epoch) for name, setting in settings.items() if isinstance(setting, str)}


def check_labels(loss: str, labels: np.ndarray) -> None:
    """Raises InputError if the loss compares labels and no image has one.

    labels: int64 [n], -1 for none.
    """
    if loss in LOSSES and LOSSES[loss].labels and not (labels >= 0).any():
        raise InputError(
            f"--loss {loss} compares labels, but these images have none: give a train folder with one folder per class,"
            " or another --loss"
        )
