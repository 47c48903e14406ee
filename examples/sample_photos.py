#!/usr/bin/env python
"""Writes a folder of photographs to try things on.

    python examples/sample_photos.py photos

The photographs are squares cut out of the two pictures that scikit-learn ships.
Writes photos/train/temple-00.jpg ... and flower-00.jpg ...; squares of one picture overlap.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def main(folder: str, each: int = 32, side: int = 160) -> None:
    train = Path(folder) / "train"
    train.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for number in range(each):
            top, left = (int(rng.integers(0, size - side)) for size in pixels.shape[:2])
            Image.fromarray(pixels[top : top + side, left : left + side]).save(train / f"{name}-{number:02d}.jpg")
    print(f"{2 * each} photographs in {train}")


if __name__ == "__main__":
    main(sys.argv[1])
