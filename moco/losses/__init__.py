"""Losses on the unit sphere: `loss(q, k, queue) -> LossOutput(loss, logs)`. `table` has them by name."""

from moco.losses.debiased import DebiasedHead
from moco.losses.hard import HardContrastiveHead, SimpleHead
from moco.losses.in_batch import InBatchHead
from moco.losses.logsumexp import queue_logsumexp
from moco.losses.supcon import SupConHead
from moco.losses.table import HEADS, make_head
from moco.losses.weighted import (
    PRESET_WEIGHTS,
    Across,
    Head,
    LossOutput,
    OneProcess,
    WeightedHead,
    align_loss,
    check_positive,
    contrastive_loss,
    full_precision,
    uniform_loss,
)

__all__ = [
    "Across",
    "DebiasedHead",
    "HEADS",
    "HardContrastiveHead",
    "Head",
    "InBatchHead",
    "LossOutput",
    "OneProcess",
    "PRESET_WEIGHTS",
    "SimpleHead",
    "SupConHead",
    "WeightedHead",
    "align_loss",
    "check_positive",
    "contrastive_loss",
    "full_precision",
    "make_head",
    "queue_logsumexp",
    "uniform_loss",
]
