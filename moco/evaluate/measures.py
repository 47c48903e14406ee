"""All measures of one kind of features together, each with its reason where it does not exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from moco import metrics
from moco.errors import InputError
from moco.evaluate.online import shared_knn_accuracy
from moco.metrics import geometry


class Settings(Protocol):
    """Options of the measures."""

    @property
    def knn_k(self) -> int: ...
    @property
    def knn_t(self) -> float: ...
    @property
    def align_alpha(self) -> float: ...
    @property
    def unif_t(self) -> float: ...
    @property
    def bins(self) -> int: ...


@dataclass
class Space:
    """What was measured on one kind of features. `values` None: not measured, see `reasons`."""

    dim: int
    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    bounds: tuple[float, float] = (0.0, 0.0)
    simplex_target: float | None = None
    histograms: dict[str, Any] = field(default_factory=dict)

    def put(self, names: Sequence[str], measure: Callable[[], Sequence[float | Tensor]]) -> None:
        try:
            found: list[float | None] = [float(value) for value in measure()]
        except InputError as error:
            found = [None] * len(names)
            self.reasons |= dict.fromkeys(names, str(error))
        self.values |= dict(zip(names, found, strict=True))


@dataclass(frozen=True)
class Features:
    """Unit rows: of the validation images [n, d], of their views q and k, of the training images [m, d] (kNN's)."""

    x: Tensor
    labels: Tensor
    q: Tensor
    k: Tensor
    bank: Tensor | None
    bank_labels: Tensor | None


def measure(f: Features, classes: int, how: Settings) -> Space:
    """All measures of `f`. `classes`: how many the data has. All ranks must call it, with the same rows."""
    space = Space(f.x.shape[1])
    known = bool((f.labels >= 0).any())

    def knn() -> list[float]:
        if not known or classes == 0:
            raise InputError("kNN needs labels, and the validation images have none")
        if f.bank is None or f.bank_labels is None:
            raise InputError("kNN needs labelled training images, and there are none")
        if classes < 2:
            raise InputError("kNN tells classes apart, and the data has one")
        x, y = f.x[f.labels >= 0], f.labels[f.labels >= 0]
        return [shared_knn_accuracy(f.bank, f.bank_labels, x, y, classes, how.knn_k, how.knn_t)]

    def collapse() -> list[float]:
        c = geometry.class_collapse(f.x, f.labels)
        space.simplex_target = c.simplex_target
        return [c.within_between, c.own_mean_cosine, c.simplex_cosine, c.simplex_deviation]

    def similarities() -> list[Tensor]:
        n = len(f.q)
        if n < 2:
            raise InputError(f"negatives are pairs of images and need 2, not {n}")
        # over all ordered pairs i ≠ j without a loop, as in metrics.tolerance
        own = (f.q.double() * f.k.double()).sum(1)
        pairs = f.q.double().sum(0) @ f.k.double().sum(0) - own.sum()
        return [own.mean(), pairs / (n * (n - 1))]

    space.put(["knn_top1"], knn)
    space.put(["alignment"], lambda: [metrics.alignment(f.q, f.k, how.align_alpha)])
    space.put(["uniformity"], lambda: [metrics.uniformity(f.x, how.unif_t)])
    space.put(["tolerance"], lambda: [metrics.tolerance(f.x, f.labels)])
    space.put(["effective_rank"], lambda: [metrics.effective_rank(f.x)])
    space.put(["positive_similarity", "negative_similarity"], similarities)
    space.put(["within_between", "own_mean_cosine", "simplex_cosine", "simplex_deviation"], collapse)
    space.bounds = metrics.uniformity_bounds(space.dim, how.unif_t)
    counted = geometry.similarity_histograms(f.q, f.k, f.labels if known else None, how.bins)
    space.histograms = {
        "edges": torch.linspace(-1, 1, how.bins + 1, dtype=torch.float64).tolist(),
        "positive": counted.positive.tolist(),
        "negative": counted.negative.tolist(),
        "same_class": None if counted.same_class is None else counted.same_class.tolist(),
    }
    return space
