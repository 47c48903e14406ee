"""Computes all measures of one kind of features.

Each missing measure has a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from moco import metrics
from moco.errors import InputError
from moco.metrics import geometry
from moco.metrics.table import OF_FEATURES, Features


@dataclass
class Space:
    """Holds the measures of one kind of features.

    A value of None has its reason in `reasons`.
    """

    dim: int
    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    bounds: tuple[float, float] = (0.0, 0.0)
    simplex_target: float | None = None
    histograms: dict[str, Any] = field(default_factory=dict)


def measure(f: Features, bins: int) -> Space:
    """Computes all measures of `f`.

    All ranks must call it, with the same rows.
    """
    space = Space(f.x.shape[1], bounds=metrics.uniformity_bounds(f.x.shape[1], f.t))
    for name, row in OF_FEATURES.items():
        if row.function is not None:
            try:
                space.values[name] = float(row.function(f))
            except InputError as error:
                space.values[name] = None
                space.reasons[name] = str(error)
    if space.values["simplex_cosine"] is not None:
        space.simplex_target = f.collapse.simplex_target
    labels = f.labels if (f.labels >= 0).any() else None
    counted = geometry.similarity_histograms(f.q, f.k, labels, bins)
    space.histograms = {
        "edges": torch.linspace(-1, 1, bins + 1, dtype=torch.float64).tolist(),
        "positive": counted.positive.tolist(),
        "negative": counted.negative.tolist(),
        "same_class": None if counted.same_class is None else counted.same_class.tolist(),
    }
    return space
