"""Gives main_moco.py a data set of your own.

    python main_moco.py --dataset examples.own_dataset:shapes --dataset-arg images=256 --image-size 32 -a smallcnn ...

The data set is a function that returns the images of a split.
It may return a torch dataset with `len` and `[i]`, as here, or a `moco.data.source.Source`.
Resume, log, kNN and the linear probe work as with any other data set.
"""

import numpy as np


class Shapes:
    """Holds discs and squares of 48 x 64 pixels in random colours.

    Each image is a function of its index and the seed.
    """

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
    """Returns the images of a split, or None if there are none.

    split: 'train' or 'val'. data: the command line's folder, which is not needed here.
    images: number of training images, from --dataset-arg.
    """
    return Shapes(images, seed=0) if split == "train" else Shapes(images // 4, seed=1)
