"""Metrics of features, as pure, exact functions of tensors, in chunks.

Features are [n, C] rows, of unit length where a docstring says so.
bf16 and fp16 become fp32; sums over pairs run in fp64. Accuracies are in percent, as MoCo prints them.
Scalars are tensors on the features' device. So a training step can log alignment, uniformity and contrastive_accuracy
without waiting for the device.
InputError where a value does not exist (no pairs, ...).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from moco.errors import InputError

_PAIRS_AT_ONCE = 1 << 24  # similarities held at a time: 64 MiB of fp32


def wide(x: Tensor) -> Tensor:
    """Casts to fp32 or wider, without gradient."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def rows_at_once(columns: int) -> int:
    """Returns the rows of a chunk of similarities to `columns` others."""
    return max(1, _PAIRS_AT_ONCE // max(1, columns))


def check_finite(*features: Tensor) -> None:
    """Raises InputError for a feature that is NaN or infinite.

    Sorting and counting would turn it into an ordinary number.
    """
    if not all(x.isfinite().all() for x in features):
        raise InputError("some features are not finite, so nothing can be measured on them: use an earlier checkpoint")


@contextlib.contextmanager
def full_fp32() -> Iterator[None]:
    """Switches TF32 off for a block.

    A trainer may have switched it on. TF32 is too coarse to rank neighbours by similarity.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def alignment(q: Tensor, k: Tensor, alpha: float = 2.0) -> Tensor:
    """Returns the mean of ‖q_i - k_i‖^α over paired unit rows.

    Source: Wang & Isola, Eq 5. 0 if pairs coincide, 2^(α/2) at right angles.
    """
    return torch.linalg.vector_norm(wide(q) - wide(k), dim=1).pow(alpha).mean()


@full_fp32()
@torch.no_grad()
def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """Returns log mean exp(-t‖x_i - x_j‖²) of unit rows.

    The mean is over all pairs i < j.
    Sources: Wang & Isola, Eq 6; Wang & Liu, Eq 10, whose tables print it with the opposite sign.
    0 for collapsed features; more negative is more uniform (`uniformity_bounds`).
    InputError for fewer than 2 rows.
    """
    x = wide(x)
    n = len(x)
    if n < 2:
        raise InputError(f"uniformity is a mean over pairs and needs 2 samples, not {n}")
    columns = torch.arange(n, device=x.device)
    total = x.new_full((), -math.inf, dtype=torch.float64)
    step = rows_at_once(n)
    for start in range(0, n, step):
        part = x[start : start + step]
        squared = (2 - 2 * part @ x[start:].T).clamp_(min=0)  # rounding must not make coinciding points repel
        pair = columns[start:] > columns[start : start + len(part), None]
        total = torch.logaddexp(total, (-t * squared).double().masked_fill_(~pair, -math.inf).logsumexp((0, 1)))
    return (total - math.log(n * (n - 1) / 2)).to(x.dtype)


def uniformity_bounds(dim: int, t: float = 2.0) -> tuple[float, float]:
    """Returns the (lowest, highest) uniformity on the unit sphere of R^dim.

    They are (-2t + log ₀F₁(; dim/2; t²), 0).
    The uniform distribution has the lowest (Wang & Isola, Proposition 1 and its proof), a single point the highest.
    An estimate from finitely many points may lie slightly below the lowest.
    The series Σ_k z^k / ((b)_k k!) has only positive terms.
    They are added as logarithms, so no dim and no t overflows.
    """
    b = dim / 2
    log_z = 2 * math.log(t)
    total = 0.0
    log_term = 0.0
    k = 0
    # until terms are below fp64 (e⁻³⁷ of the sum), and not before their peak
    while log_term > total - 40 or (b + k) * (k + 1) < t * t:
        log_term += log_z - math.log((b + k) * (k + 1))
        top = max(total, log_term)
        low = min(total, log_term)
        total = top + math.log1p(math.exp(low - top))
        k += 1
    return -2 * t + total, 0.0


@torch.no_grad()
def tolerance(x: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean of x_i·x_j over pairs of the same class.

    The pairs have i ≠ j (Wang & Liu, Eq 11).
    labels: int64 [n]; samples with -1 are left out.
    InputError if no class has 2 samples.
    Exact without a loop over pairs: in a class with sum s, Σ_{i≠j} x_i·x_j = ‖s‖² - Σ_i ‖x_i‖².
    """
    known = labels >= 0
    x = wide(x)[known].double()
    labels = labels[known]
    if not len(x):
        raise InputError("tolerance needs labelled samples, and there are none")
    classes = int(labels.max()) + 1
    sums = x.new_zeros((classes, x.shape[1])).index_add_(0, labels, x)
    count = torch.bincount(labels, minlength=classes).double()
    pairs = (count * (count - 1)).sum()
    if not pairs > 0:
        raise InputError("tolerance needs at least one class with 2 samples")
    return ((sums.square().sum() - x.square().sum()) / pairs).to(torch.float32)


@torch.no_grad()
def contrastive_accuracy(q: Tensor, k: Tensor, queue: Tensor, topk: tuple[int, ...] = (1, 5)) -> dict[str, Tensor]:
    """Returns top-k accuracies of queries and keys, in percent.

    A query is correct if its own key is among the `topk` most similar keys.
    q, k: unit rows [N, C]. queue: unit columns [C, K]. Returns {"acc1": ..., "acc5": ...}.
    A queue entry that ties with the own key counts as nearer: collapsed features must not look perfect.
    """
    q = wide(q)
    k = wide(k)
    queue = wide(queue)
    positive = (q * k).sum(1, keepdim=True)
    nearer = torch.zeros(len(q), dtype=torch.int64, device=q.device)
    for part in queue.split(rows_at_once(len(q)), dim=1):
        nearer += (~(q @ part < positive)).sum(1)  # "not less", so that NaN never counts as a success
    return {f"acc{n}": (nearer < n).float().mean() * 100 for n in topk}


@torch.no_grad()
def topk_correct(logits: Tensor, labels: Tensor, topk: tuple[int, ...] = (1, 5)) -> Tensor:
    """Returns the number of rows with their label among the top k.

    logits: [n, classes]. labels: int64 [n]. Returns int64 [len(topk)].
    The top k are the highest logits. A logit that ties with the label's counts as higher.
    """
    own = logits.gather(1, labels[:, None])
    rank = (~(logits < own)).sum(1) - 1  # minus the label itself
    return torch.stack([(rank < k).sum() for k in topk])


def topk_accuracy(logits: Tensor, labels: Tensor, topk: tuple[int, ...] = (1, 5)) -> Tensor:
    """Returns `topk_correct` in percent of the rows: float32 [len(topk)].

    With k ≥ classes it is 100.
    """
    return topk_correct(logits, labels, topk).float() * (100 / max(1, len(labels)))


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """Returns the effective rank of features [n, C], from 1 to C.

    Source: Roy & Vetterli, EUSIPCO 2007.
    It is the exponential of the entropy of the singular values as shares of their sum.
    The singular values are the square roots of the eigenvalues of XᵀX [C, C], in fp64, so n may be large.
    InputError for features that are all zero or not finite.
    """
    x = wide(x)
    check_finite(x)
    if not x.any():
        raise InputError("all features are zero, so they have no effective rank: use another checkpoint")
    gram = x.new_zeros((x.shape[1], x.shape[1]), dtype=torch.float64)
    for part in x.split(rows_at_once(x.shape[1])):
        gram += part.double().T @ part.double()
    singular = torch.linalg.eigvalsh(gram).clamp_(min=0).sqrt()
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp().to(torch.float32)


@full_fp32()
@torch.no_grad()
def knn_predict(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    classes: int,
    k: int = 200,
    t: float = 0.1,
    chunk: int | None = None,
) -> Tensor:
    """Returns the class of each test row by kNN: int64 [n].

    The `k` most similar training rows vote; with fewer than `k` training rows all of them vote.
    A vote weighs exp(similarity / t), as in MoCo's CIFAR demo (after Wu et al., CVPR 2018).
    train_x, test_x: unit rows [m, C] and [n, C].
    train_y: int64 [m], 0 ... classes - 1.
    chunk: test rows at a time; it changes the memory, not the result.
    InputError without training rows or if a feature is not finite.
    """
    if not len(train_x):
        raise InputError("kNN needs labelled training samples, and there are none")
    train_x, test_x, k = wide(train_x), wide(test_x), min(k, len(train_x))
    check_finite(train_x, test_x)
    predicted = []
    for part in test_x.split(chunk or rows_at_once(len(train_x))):
        similarity, neighbour = (part @ train_x.T).topk(k, dim=1)
        # relative to the nearest: a common factor changes no vote, and e^(1/t) may overflow
        weight = ((similarity - similarity[:, :1]) / t).exp()
        votes = weight.new_zeros((len(part), classes)).scatter_add_(1, train_y[neighbour], weight)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted) if predicted else train_y.new_zeros(0)


def knn_accuracy(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, classes: int, k: int = 200, t: float = 0.1
) -> Tensor:
    """Returns the percentage of test rows for which `knn_predict` gives `test_y`."""
    return (knn_predict(train_x, train_y, test_x, classes, k, t) == test_y).float().mean() * 100
