"""InfoNCE, alignment and uniformity over a queue, and their weighted sum.

A loss depends on no rank, device or option. On the unit sphere ‖a - b‖² = 2 - 2a·b.
So every loss is a term in the positives q·k plus a log-sum-exp (`queue_logsumexp`) of scaled similarities to the queue.

Shapes: q, k [N, C] unit-norm queries and keys; queue [C, K] unit-norm columns, a constant without gradient.
Computed in fp32 or wider for every input dtype, also under autocast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from moco.errors import InputError
from moco.losses.logsumexp import LogSumExp, queue_logsumexp


class LossOutput(NamedTuple):
    """Holds a loss and its parts.

    loss: scalar to call backward on.
    logs: the parts by name, detached scalars.
    """

    loss: Tensor
    logs: dict[str, Tensor]


class Loss(Protocol):
    """Describes the call of every loss.

    labels, queue_labels: int64 [N] and [K], -1 where unknown. A loss that compares no labels ignores them.
    """

    def __call__(
        self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor | None = None, queue_labels: Tensor | None = None
    ) -> LossOutput: ...


class Across(Protocol):
    """Describes access to a batch that is spread over processes.

    gather: rows [N, C] -> (rows of all processes, position of the first own row).
    logsumexp: scalar -> log of the sum over processes of its exponential.
    `moco.distributed.global_batch.GlobalBatch` implements it for several processes.
    """

    def gather(self, x: Tensor) -> tuple[Tensor, int]: ...
    def logsumexp(self, x: Tensor) -> Tensor: ...


class OneProcess:
    """Implements `Across` for a single process."""

    def gather(self, x: Tensor) -> tuple[Tensor, int]:
        return x, 0

    def logsumexp(self, x: Tensor) -> Tensor:
        return x


def full_precision(loss: Callable[..., LossOutput]) -> Callable[..., LossOutput]:
    """Casts bf16 and fp16 features to fp32 and switches autocast off.

    exp(q·k/0.07) needs the precision of fp32.
    """

    @functools.wraps(loss)
    def wrapped(self: Any, q: Tensor, k: Tensor, queue: Tensor, *args: Any, **kwargs: Any) -> LossOutput:
        with torch.autocast(q.device.type, enabled=False):
            wide = torch.promote_types(q.dtype, torch.float32)
            return loss(self, q.to(wide), k.to(wide), queue.detach().to(wide), *args, **kwargs)

    return wrapped


def check_positive(name: str, value: float) -> None:
    """Raises InputError unless 0 < value < ∞."""
    if not 0 < value < math.inf:
        raise InputError(f"the {name} must be a positive number, not {value:g}")


def check_mix(loss: Any) -> None:
    """Raises InputError if temperature, exponents or weights are out of range.

    The weights are those of the three terms. At least one must be positive.
    """
    check_positive("temperature (--moco-t)", loss.temperature)
    check_positive("exponent of alignment (--moco-align-alpha)", loss.align_alpha)
    check_positive("t of uniformity (--moco-unif-t)", loss.unif_t)
    weights = (loss.contr_w, loss.align_w, loss.unif_w)
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise InputError(
            "--moco-contr-w, --moco-align-w and --moco-unif-w must not be negative, and at least one must be positive;"
            f" they are {weights[0]:g}, {weights[1]:g}, {weights[2]:g}"
        )


def weighted_sum(terms: Mapping[str, tuple[float, Tensor]]) -> LossOutput:
    """Returns the sum of weight · value over the terms.

    terms: name -> (weight, value). The log gets each value as loss_NAME.
    """
    loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
    return LossOutput(loss, {f"loss_{name}": value.detach() for name, (_, value) in terms.items()})


def contrastive_loss(
    q: Tensor, k: Tensor, queue: Tensor, temperature: float, logsumexp: LogSumExp = queue_logsumexp
) -> Tensor:
    """Returns InfoNCE, the mean over queries.

    MoCo (He et al. 2020), Eq 1: -log[e^{q·k/T} / (e^{q·k/T} + Σ_j e^{q·Q_j/T})].
    """
    positive = (q * k).sum(dim=1) / temperature
    negatives = logsumexp(q, queue, 1 / temperature)
    return (torch.logaddexp(positive, negatives) - positive).mean()


def align_loss(q: Tensor, k: Tensor, alpha: float = 2.0) -> Tensor:
    """Returns L_align, the mean of ‖q - k‖^α.

    Source: Wang & Isola 2020, §4.1. For unit vectors it is the mean of (2 - 2 q·k)^{α/2}.
    Below α = 2 the gradient is infinite at q = k. So, unless α is 2, the squared distance is clamped at
    the dtype's epsilon. Below this epsilon the gradient is 0.
    """
    distance2 = 2 - 2 * (q * k).sum(dim=1)
    if alpha == 2:
        return distance2.mean()
    return distance2.clamp_min(torch.finfo(q.dtype).eps).pow(alpha / 2).mean()


def uniform_loss(
    q: Tensor,
    queue: Tensor,
    t: float = 3.0,
    intra_batch: bool = True,
    across: Across | None = None,
    logsumexp: LogSumExp = queue_logsumexp,
) -> Tensor:
    """Returns L_uniform, log mean exp(-t‖a - b‖²).

    Source: Wang & Isola 2020, §4.1. There is one mean over all pairs.
    The pairs are the N·K of a query and a queue entry.
    intra_batch: adds the N(N-1)/2 unordered pairs of two queries. Their gradients flow to both queries.
    across: N counts the queries of all processes.
    """
    across = across or OneProcess()
    exponents = [logsumexp(q, queue, 2 * t)]
    everyone, first = across.gather(q)
    count = len(everyone) * queue.shape[1]
    if intra_batch and len(everyone) > 1:
        here = torch.arange(first, first + len(q), device=q.device)
        there = torch.arange(len(everyone), device=q.device)
        counted_before = there[None, :] <= here[:, None]  # each unordered pair once, and no query with itself
        exponents.append((2 * t * q @ everyone.t()).masked_fill(counted_before, -math.inf).flatten())
        count += len(everyone) * (len(everyone) - 1) // 2
    return across.logsumexp(torch.cat(exponents).logsumexp(dim=0)) - 2 * t - math.log(count)


@dataclass
class WeightedLoss:
    """Computes the weighted sum of InfoNCE, alignment and uniformity.

    contr_w · InfoNCE(temperature) + align_w · align(align_alpha) + unif_w · uniform(unif_t).
    These are the losses of Wang & Isola 2020. Weights (1, 0, 0) give InfoNCE, (0, 3, 1) their MoCo variant.
    A term of weight 0 is not computed.
    """

    contr_w: float = 1.0
    temperature: float = 0.07
    align_w: float = 0.0
    align_alpha: float = 2.0
    unif_w: float = 0.0
    unif_t: float = 3.0
    intra_batch: bool = True
    across: Across = field(default_factory=OneProcess)
    logsumexp: LogSumExp = queue_logsumexp

    def __post_init__(self) -> None:
        check_mix(self)

    def contrastive(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return contrastive_loss(q, k, queue, self.temperature, self.logsumexp)

    def uniform(self, q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
        return uniform_loss(q, queue, self.unif_t, self.intra_batch, self.across, self.logsumexp)

    @full_precision
    def __call__(
        self, q: Tensor, k: Tensor, queue: Tensor, labels: Tensor | None = None, queue_labels: Tensor | None = None
    ) -> LossOutput:
        terms = {}
        if self.contr_w:
            terms["contrastive"] = (self.contr_w, self.contrastive(q, k, queue))
        if self.align_w:
            terms["align"] = (self.align_w, align_loss(q, k, self.align_alpha))
        if self.unif_w:
            terms["uniform"] = (self.unif_w, self.uniform(q, k, queue))
        return weighted_sum(terms)


PRESET_WEIGHTS = {"infonce": (1.0, 0.0, 0.0), "align-uniform": (0.0, 3.0, 1.0)}
"""The weights of the contrastive, alignment and uniformity terms, by `--loss`; moco/losses/table.py has all names."""
