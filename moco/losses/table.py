"""The losses by name: one row each.

A new loss is a class with the call of `moco.losses.Loss`, in a file of its own, and a row here. Outside this project it
needs no row: `--loss module:Class`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moco import plugins
from moco.errors import InputError
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
    """A loss and its options.

    loss: its class. settings: argument of the class -> option of main_moco.py. in_batch: the class for --moco-k 0, if
    there is one. temperature: the default of --moco-t. labels: whether it compares labels. fixed: arguments of the
    class that are no option.
    """

    loss: type
    settings: Mapping[str, str] = field(default_factory=dict)
    in_batch: type | None = None
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
_T, _HARD = {"temperature": "moco_t"}, {"share": "moco_hard_alpha"}
_DEBIASED = {**_T, "prior": "moco_tau_plus"}

LOSSES: dict[str, Row] = {
    **{name: Row(WeightedLoss, _MIX, in_batch=InBatchLoss) for name in PRESET_WEIGHTS},
    "simple": Row(SimpleLoss, {"weight": "moco_simple_w"}),
    "hard": Row(HardContrastiveLoss, _T | _HARD),
    "hard-simple": Row(SimpleLoss, {"weight": "moco_simple_w"} | _HARD),
    "debiased": Row(DebiasedLoss, _DEBIASED, temperature=0.5),
    "hcl": Row(DebiasedLoss, _DEBIASED | {"beta": "moco_beta"}, temperature=0.5),
    "dcl": Row(DecoupledLoss, _T, in_batch=InBatchDecoupledLoss, temperature=0.1),
    "dclw": Row(DecoupledLoss, _T, in_batch=InBatchDecoupledLoss, temperature=0.1, fixed={"sigma": 0.5}),
    "supcon": Row(SupConLoss, _T, labels=True),
}


def make_loss(options: Any, across: Across | None = None) -> Loss:
    """The loss that the options of main_moco.py describe, as in epoch 0. InputError if they make no sense together.

    across: the other ranks, for a uniformity over all of them (`unif_global`) and for the losses without a queue.
    """
    if plugins.is_outside(options.loss):
        return _outside(options)
    row = LOSSES[options.loss]
    settings: dict[str, Any] = {
        argument: value_at(getattr(options, name), 0) for argument, name in row.settings.items()
    } | dict(row.fixed)
    kind = row.loss if options.moco_k else row.in_batch
    if kind is None:
        with_batch = " or ".join(name for name, other in LOSSES.items() if other.in_batch)
        raise InputError(
            f"--loss {options.loss} takes its negatives from the queue, so --moco-k must be at least 1; --moco-k 0 goes"
            f" with {with_batch}"
        )
    arguments = inspect.signature(kind).parameters
    if issubclass(kind, WeightedLoss):
        wanted = kind is InBatchLoss or options.unif_global
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
        raise InputError(f"--loss {options.loss} gives a {type(loss).__name__}, which cannot be called as a loss")
    return loss


def check_loss(options: Any) -> None:
    """InputError if the options describe no loss. A loss from outside is looked up, not built."""
    plugins.check_unused("--loss", options.loss, options.loss_arg)
    if plugins.is_outside(options.loss):
        plugins.find("--loss", options.loss, options.loss_arg)
    else:
        make_loss(options)


def set_epoch(loss: Loss, options: Any, epoch: int) -> None:
    """Gives the loss its settings of a 0-based epoch: those that are curves over epochs.

    A loss from outside that has a method `set_epoch(epoch)` is told the epoch.
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
    """The settings that follow the epoch, by option, and their values in it: for the log."""
    settings = {name: getattr(options, name) for name in ("moco_t", "moco_unif_t")}
    return {name: value_at(setting, epoch) for name, setting in settings.items() if isinstance(setting, str)}


def check_labels(loss: str, labels: np.ndarray) -> None:
    """InputError if the loss compares labels (int64 [n], -1 for none) and the data set has none."""
    if loss in LOSSES and LOSSES[loss].labels and not (labels >= 0).any():
        raise InputError(
            f"--loss {loss} compares labels and these images have none: give a train folder with a folder per class, or"
            " take another --loss"
        )
