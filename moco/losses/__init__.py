"""Losses on the unit sphere: `loss(q, k, queue) -> LossOutput(loss, logs)`. `table` has them by name."""

from moco.losses.debiased import DebiasedHead as DebiasedHead
from moco.losses.hard import HardContrastiveHead as HardContrastiveHead, SimpleHead as SimpleHead
from moco.losses.in_batch import InBatchHead as InBatchHead
from moco.losses.logsumexp import queue_logsumexp as queue_logsumexp
from moco.losses.supcon import SupConHead as SupConHead
from moco.losses.table import HEADS as HEADS, make_head as make_head
from moco.losses.weighted import (
    PRESET_WEIGHTS as PRESET_WEIGHTS,
    Across as Across,
    Head as Head,
    LossOutput as LossOutput,
    OneProcess as OneProcess,
    WeightedHead as WeightedHead,
    align_loss as align_loss,
    check_positive as check_positive,
    contrastive_loss as contrastive_loss,
    full_precision as full_precision,
    uniform_loss as uniform_loss,
)
