#!/usr/bin/env python
"""Pretraining on data of one's own that is neither a folder nor a .beton: implement `moco.data.source.Source`.

    python examples/own_dataset.py

The source below draws its images: discs and squares in random colours. With `len`, `labels`, `classes`, `notes`,
`name`, `size`, `open` and `decode` it goes through the same sampler, loader, crops and augmentations as any other.
"""

from __future__ import annotations

import numpy as np
import torch

import moco
from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import ArrayPicture


class Shapes:
    """n images of 48 x 64 pixels, each a function of its index."""

    classes, notes = ["disc", "square"], ["shapes drawn on the fly"]

    def __init__(self, n: int) -> None:
        self.labels = np.arange(n, dtype=np.int64) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"shape {index}"

    def size(self, index: int) -> tuple[int, int]:
        return 48, 64

    def decode(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        y, x = np.mgrid[:48, :64]
        cy, cx, radius = rng.uniform(16, 32), rng.uniform(20, 44), rng.uniform(8, 14)
        distance = [np.hypot(y - cy, x - cx), np.maximum(abs(y - cy), abs(x - cx))][index % 2]
        bright, dark = rng.integers(128, 256, 3), rng.integers(0, 128, 3)
        return np.where((distance < radius)[..., None], bright, dark).astype(np.uint8)

    def open(self, index: int) -> ArrayPicture:
        return ArrayPicture(self.decode(index))


def main(epochs: int = 3, seed: int = 0) -> None:
    torch.manual_seed(seed)
    source, recipe = Shapes(256), find_recipe("v2")
    loader = Loader(source, Sampler(len(source), 64, seed), size=32, scale=recipe.scale, ratio=recipe.ratio, seed=seed)
    augment = Augment(recipe, seed)
    model = moco.MoCo(moco.encoders.build_encoder("smallcnn", 32), dim=32, K=256, m=0.99)
    loss_function = moco.losses.WeightedLoss(temperature=0.2)
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):
            model.update_key_encoder()
            q, k = model(*(augment(batch.crops[:, v], batch.index, epoch, v) for v in (0, 1)))
            loss = loss_function(q, k, model.queue).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.enqueue(k)
        print(f"epoch {epoch + 1}: loss {loss:.3f}")


if __name__ == "__main__":
    main()
