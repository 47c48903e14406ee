"""Few combinations of many settings, such that every pair of values of two settings occurs in one of them."""

from __future__ import annotations

import itertools
from typing import Any


def pairs(row: dict[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return {(a, b) for a, b in itertools.combinations(sorted(row.items()), 2)}


def pairwise(settings: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Greedy: each next combination is one that covers the most pairs not yet covered. The same result every time."""
    every = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    left = set().union(*(pairs(row) for row in every))
    chosen = []
    while left:
        best = max(every, key=lambda row: len(pairs(row) & left))
        left -= pairs(best)
        chosen.append(best)
    return chosen
