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
    """Returns sum and number of queue entries with each sample's label.

    labels: int64 [N]. queue: [C, K]. queue_labels: int64 [K]. A label of -1 matches nothing.
    The sum is [N, C], the number [N].
    """
    labels = torch.where(labels < 0, -2, labels)
    total = queue.new_zeros((len(labels), len(queue)))
    count = queue.new_zeros(len(labels))
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
    """Returns the supervised contrastive loss L_out over the queue.

    Mean over queries (Khosla et al., NeurIPS 2020, Eq 2) of -1/|P| Σ_{p∈P} log[e^{q·p/T} / Σ_a e^{q·a/T}].
    a runs over the query's own key and the whole queue.
    P is the own key and the queue entries with the query's label.
    labels, queue_labels: int64 [N] and [K]; -1 is no label and never a positive.
    Without labels this is InfoNCE. Other shapes as in moco/losses/weighted.py.
    """
    own = (q * k).sum(dim=1)
    total, count = sum_of_same_label(labels, queue, queue_labels)
    positives = (own + (q * total).sum(dim=1)) / ((1 + count) * temperature)
    everything = torch.logaddexp(own / temperature, logsumexp(q, queue, 1 / temperature))
    return (everything - positives).mean()


@dataclass
class SupConLoss:
    """Computes `supcon_loss`.

    InputError when it is called without labels.
    """

    temperature: float = 0.07
    logsumexp: LogSumExp = queue_logsumexp

    def __post_init__(self) -> None:
        check_positive("temperature (--moco-t)", self.temperature)

    @full_precision
    def __call__(
        self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor | None = None, queue_labels: Tensor | None = None
    ) -> LossOutput:
        if labels is None or queue_labels is None:
            raise InputError("--loss supcon needs labels of the images and of the queue's keys")
        loss = supcon_loss(q, k, queue, labels, queue_labels, self.temperature, self.logsumexp)
        return LossOutput(loss, {})
