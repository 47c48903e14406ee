"""A data set of your own for main_moco.py: a function that gives the images of a split.

    python main_moco.py --dataset examples.own_dataset:shapes --dataset-arg images=256 --image-size 32 -a smallcnn ...

It may return a torch dataset with `len` and `[i]`, as here, or a `moco.data.source.Source`. Resume, log, kNN and the
linear probe work as with any other data set.
"""

import numpy as np


class Shapes:
    """Discs and squares of 48 x 64 pixels in random colours, each a function of its index."""

    classes = ("disc", "square")

    def __init__(self, images: int, seed: int) -> None:
        self.targets = [index % 2 for index in range(images)]
        self.seed = seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng([self.seed, index])
        y, x = np.mgrid[:48, :64] - rng.uniform([[[16]], [[20]]], [[[32]], [[44]]])
        distance = np.hypot(y, x) if index % 2 == 0 else np.maximum(abs(y), abs(x))
        bright, dark = rng.integers(128, 256, 3), rng.integers(0, 128, 3)
        pixels = np.where((distance < rng.uniform(8, 14))[..., None], bright, dark)
        return pixels.astype(np.uint8), self.targets[index]


def shapes(split: str, data: str | None, images: int = 256) -> Shapes | None:
    """split: 'train' or 'val'; None where there is none. data: the command line's folder, which is not needed here."""
    return Shapes(images, seed=0) if split == "train" else Shapes(images // 4, seed=1)
