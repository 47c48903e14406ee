"""Losses on the unit sphere: `loss(q, k, queue) -> LossOutput(loss, logs)`.

`table` lists them by name.
"""

import warnings

from moco.losses.batch_keys import BatchKeysDecoupledLoss as BatchKeysDecoupledLoss, BatchKeysLoss as BatchKeysLoss
from moco.losses.debiased import DebiasedLoss as DebiasedLoss
from moco.losses.decoupled import DecoupledLoss as DecoupledLoss, InBatchDecoupledLoss as InBatchDecoupledLoss
from moco.losses.hard import HardContrastiveLoss as HardContrastiveLoss, SimpleLoss as SimpleLoss
from moco.losses.in_batch import InBatchLoss as InBatchLoss
from moco.losses.logsumexp import queue_logsumexp as queue_logsumexp
from moco.losses.supcon import SupConLoss as SupConLoss
from moco.losses.table import LOSSES as LOSSES, make_loss as make_loss
from moco.losses.weighted import (
    PRESET_WEIGHTS as PRESET_WEIGHTS,
    Across as Across,
    Loss as Loss,
    LossOutput as LossOutput,
    OneProcess as OneProcess,
    WeightedLoss as WeightedLoss,
    align_loss as align_loss,
    check_positive as check_positive,
    contrastive_loss as contrastive_loss,
    full_precision as full_precision,
    uniform_loss as uniform_loss,
)

_OLD_NAMES = ("Debiased", "HardContrastive", "InBatch", "Simple", "SupCon", "Weighted")


def __getattr__(name: str) -> type:
    """Returns the class of an old name `...Head`.

    The old names work for one release, with a DeprecationWarning. AttributeError for any other name.
    """
    if name.removesuffix("Head") not in _OLD_NAMES or not name.endswith("Head"):
        raise AttributeError(f"module 'moco.losses' has no attribute {name!r}")
    new_name = name.removesuffix("Head") + "Loss"
    warnings.warn(f"moco.losses.{name} is now {new_name}", DeprecationWarning, stacklevel=2)
    return globals()[new_name]
