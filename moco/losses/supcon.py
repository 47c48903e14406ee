"""The supervised contrastive loss, with the queue's labels beside its keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moco.errors import InputError
from moco.losses.logsumexp import LogSumExp, queue_logsumexp
from moco.losses.weighted import LossOutput, check_positive, full_precision


@torch.no_grad()
def sum_of_same_label(labels: Tensor, queue: Tensor, queue_labels: Tensor, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """(sum of the queue entries that have each sample's label [N, C], their number [N]). -1 matches nothing."""
    labels = torch.where(labels < 0, -2, labels)
    total, count = queue.new_zeros((len(labels), len(queue))), queue.new_zeros(len(labels))
    for keys, of_keys in zip(queue.split(chunk, dim=1), queue_labels.split(chunk), strict=True):
        same = (labels[:, None] == of_keys).to(queue.dtype)
        total = total.addmm(same, keys.t())
        count = count + same.sum(dim=1)
    return total, count


def supcon_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    labels: Tensor,
    queue_labels: Tensor,
    temperature: float,
    logsumexp: LogSumExp = queue_logsumexp,
) -> Tensor:
    """L_out (Khosla et al., NeurIPS 2020, Eq 2) over the queue, mean over queries; shapes as in
    moco/losses/weighted.py.

    -1/|P| Σ_{p∈P} log[e^{q·p/T} / Σ_a e^{q·a/T}], a over the own key and the whole queue, P the own key and the queue
    entries of the query's label. labels [N], queue_labels [K] int64: -1 is no label, and never a positive; without any
    this is InfoNCE.
    """
    own = (q * k).sum(dim=1)
    total, count = sum_of_same_label(labels, queue, queue_labels)
    positives = (own + (q * total).sum(dim=1)) / ((1 + count) * temperature)
    everything = torch.logaddexp(own / temperature, logsumexp(q, queue, 1 / temperature))
    return (everything - positives).mean()


@dataclass
class SupConLoss:
    """`supcon_loss`."""

    temperature: float = 0.07
    logsumexp: LogSumExp = queue_logsumexp

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    @full_precision
    def __call__(
        self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor | None = None, queue_labels: Tensor | None = None
    ) -> LossOutput:
        if labels is None or queue_labels is None:
            raise InputError("the supervised contrastive loss needs labels of the images and of the queue's keys")
        loss = supcon_loss(q, k, queue, labels, queue_labels, self.temperature, self.logsumexp)
        return LossOutput(loss, {})
