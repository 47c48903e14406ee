#!/usr/bin/env python
"""Fine-tunes an exported encoder with labels.

    python main_moco.py --dataset digits -a smallcnn --moco-dim 64 --moco-k 512 --moco-m 0.99 -b 128 --lr 0.06 --cos \\
        --epochs 10 --output-dir runs/digits
    python -m moco.export runs/digits/checkpoint_0009.pth.tar --to safetensors
    python examples/fine_tuning.py runs/digits/checkpoint_0009-safetensors --labels 10

All layers train. The new classifier has a larger learning rate than the trunk.
`--labels` is the number of labelled images of each class. The accuracy is that on the val split.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.data.datasets import open_split
from moco.encoders.files import read_trunk


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("encoder", help="what moco.export wrote, or any checkpoint")
    parser.add_argument("--labels", type=int, default=10, help="of each class (%(default)s)")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)

    trunk = read_trunk(arguments.encoder)
    train, val = (open_split(None, "digits", split) for split in ("train", "val"))

    def images(source: object, index: np.ndarray) -> Tensor:
        return torch.stack([trunk.preprocessing(source.decode(int(i))) for i in index])  # type: ignore

    chosen = np.concatenate([np.flatnonzero(train.labels == c)[: arguments.labels] for c in range(10)])
    x, y = images(train, chosen), torch.from_numpy(train.labels[chosen])
    width = trunk(x[:1]).shape[1]
    network = nn.Sequential(trunk, nn.Linear(width, 10))
    optimizer = torch.optim.SGD(
        [{"params": network[0].parameters(), "lr": 0.01}, {"params": network[1].parameters(), "lr": 0.1}], momentum=0.9
    )
    network.train()
    for _ in range(arguments.steps):
        rows = torch.randint(len(x), (min(64, len(x)),))
        loss = F.cross_entropy(network(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        guesses = network(images(val, np.arange(len(val)))).argmax(1)
    accuracy = 100 * (guesses == torch.from_numpy(val.labels)).double().mean().item()
    print(f"{accuracy:.1f} % of {len(val)} scans, with {arguments.labels} labels of each class")
    return accuracy


if __name__ == "__main__":
    main()
