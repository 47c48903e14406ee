"""Counts kernels and bytes of a training step on a pretended GPU.

    python -m benchmarks.launches

main_moco.py runs a step on the pretended GPU of the tests (tests/gpu/pretended). No GPU is needed.
The step has ResNet-50, 224 px, batch 256, bf16 and K 65,536.
The kernels that it launches and the bytes that they move are counted by stage. Nothing is timed.
It needs a CPU build of torch and a C++ compiler.
tests/gpu/pretended/check_counts.py compares a step with these numbers.
"""

from __future__ import annotations

# isort: off
import tests.gpu.pretended.shim  # noqa: F401  # before torch

# isort: on
import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import RESULTS, commit
from moco.data.augment.recipes import find_recipe
from tests.gpu.pretended.counting import Count, count
from tests.gpu.pretended.lowering import augmentation

FILE = RESULTS / "launches-counted.json"
WORDS = "-a resnet50 --image-size 224 --moco-dim 128 --moco-k 65536 --mlp --aug-plus --amp bf16"
RANKS = (1, 8)  # that share one batch
STAGES = ("augmentation", "query", "key", "head", "backward", "communication", "optimiser", "EMA", "queue", "other")


def step(ranks: int, words: str = WORDS, images: int = 256, augmentations: bool = True) -> Count:
    """Counts a step of the last of so many ranks.

    augmentations: count them as they are compiled, which takes as long as the rest; else they are left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        counted = count(words, Path(folder), ranks, ranks - 1, images, augmentations=False)
    if not augmentations:
        return counted
    kernels, moved = augmentation(find_recipe("v2").view(0), images // ranks)
    counted.kernels["augmentation"], counted.bytes["augmentation"] = 2 * kernels, 2 * moved
    return counted


def record(counts: dict[int, Count]) -> dict[str, Any]:
    """Returns the content of the file.

    It holds the kernels and bytes of each stage, for each number of ranks.
    """
    return {
        "topic": "launches",
        "torch": torch.__version__,
        "commit": commit(),
        "options": WORDS,
        "counted": {
            str(ranks): {s: {"kernels": found.kernels[s], "bytes": found.bytes[s]} for s in STAGES if found.kernels[s]}
            for ranks, found in counts.items()
        },
    }


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(argv)
    from benchmarks import performance_page

    FILE.write_text(json.dumps(record({ranks: step(ranks) for ranks in RANKS}), indent=1) + "\n")
    print(performance_page.section("launches-counted", RESULTS))
    performance_page.main()


if __name__ == "__main__":
    main()
