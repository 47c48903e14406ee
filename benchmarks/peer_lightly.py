"""Trains lightly's MoCo v2 on photographs, as its documentation describes it.

    PYTHONPATH=. .peers/bin/python benchmarks/peer_lightly.py IMAGES --arch resnet18 --size 64

photographs.py runs it. Source: lightly's examples/pytorch/moco.py.
Model, loss, transform, optimiser and momentum update are lightly's, with the documented settings.
Only image size, batch and number of worker processes differ.
For every line on stdin it trains an epoch and prints {"images": ..., "seconds": ...}.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator

import moco  # noqa: F401  (before torchvision: makes it importable beside a CPU build of torch)

# isort: split

import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn


class MoCo(nn.Module):
    def __init__(self, arch: str) -> None:
        super().__init__()
        net = getattr(torchvision.models, arch)()
        width = net.fc.in_features
        self.backbone = nn.Sequential(*list(net.children())[:-1])
        self.head = MoCoProjectionHead(width, width, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)

    def query(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).flatten(start_dim=1))

    @torch.no_grad()
    def key(self, x: Tensor) -> Tensor:
        return self.head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()


def epochs(options: argparse.Namespace) -> Iterator[tuple[int, float]]:
    """Trains one epoch after the other; yields (images, seconds) of each."""
    device = torch.device(options.device)
    model = MoCo(options.arch).to(device)
    data = torchvision.datasets.ImageFolder(options.images, MoCoV2Transform(input_size=options.size))
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    criterion = NTXentLoss(memory_bank_size=(4096, 128)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    epoch = 0
    while True:
        start, images = time.perf_counter(), 0
        momentum = cosine_schedule(epoch % 10, 10, 0.996, 1)
        for batch in loader:
            x_query, x_key = batch[0]
            update_momentum(model.backbone, model.backbone_momentum, m=momentum)
            update_momentum(model.head, model.head_momentum, m=momentum)
            loss = criterion(model.query(x_query.to(device)), model.key(x_key.to(device)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            images += len(x_query)
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield images, time.perf_counter() - start
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(max(1, options.workers))
    each = epochs(options)
    for _ in sys.stdin:
        images, seconds = next(each)
        print(json.dumps({"images": images, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
