"""Features of a data set: loaders of its images, and their encoding.

Each rank encodes its share of the images; then every rank holds all features, in the order of the data set.
"Features" come from the trunk, and a linear probe reads them. "Outputs" come from the projection head, and the loss
reads them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco.data.augment import Augment
from moco.data.augment.recipes import Recipe
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import Source
from moco.distributed import broadcast_buffers, gather_objects, gather_rows, rank, world_size
from moco.encoders import classifier_name, feature_dim, trunk
from moco.errors import NumericsError
from moco.run.options import DataOptions


@contextlib.contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; restores each module's own mode after it.

    Some modules may be frozen, so the modes may differ.
    """
    were_training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in were_training:
            module.training = True


@torch.no_grad()
def encode(network: nn.Module, loader: Loader, augment: Augment) -> tuple[Tensor, Tensor]:
    """Encodes V views of each sample.

    Returns features fp32 [n, V, d] and labels int64 [n]. Both are on every rank, in the order of the data set. Samples
    that were skipped as unreadable are left out. `network` [N, C, S, S] -> [N, d] runs in evaluation mode; its own mode
    is restored. NumericsError if a feature is not finite.
    """
    broadcast_buffers(network)  # BatchNorm statistics differ between ranks in training
    features = []
    labels = []
    index = []
    with eval_mode(network), contextlib.closing(loader.epoch(0)) as batches:
        for batch in batches:
            if len(batch.index):
                views = [augment(batch.crops[:, v], batch.index, 0, v) for v in range(batch.crops.shape[1])]
                features.append(torch.stack([network(images).float() for images in views], dim=1))
                labels.append(batch.labels)
                index.append(batch.index)
    # With few images a rank may have none. Then it takes the width of the features from another rank.
    shapes = gather_objects(tuple(torch.cat(features).shape) if features else None)
    some = next(shape for shape in shapes if shape is not None)
    sizes = [shape[0] if shape is not None else 0 for shape in shapes]
    device = loader.device
    none = torch.zeros(0, dtype=torch.int64, device=device)
    x = gather_rows(torch.cat(features) if features else torch.zeros((0, *some[1:]), device=device), sizes)
    y = gather_rows(torch.cat(labels) if labels else none, sizes)
    position, order = gather_rows(torch.cat(index) if index else none, sizes).sort(stable=True)
    first = torch.ones_like(position, dtype=torch.bool)
    first[1:] = position[1:] != position[:-1]  # the loader puts a neighbour in the place of an image that it skips
    x = x[order[first]]
    y = y[order[first]]
    if not x.isfinite().all():
        raise NumericsError(
            "the encoder's features are not finite, so nothing can be measured: use an earlier checkpoint"
        )
    return x, y


def extract_features(
    network: nn.Module, loader: Loader, augment: Augment, *, normalise: bool = False
) -> tuple[Tensor, Tensor]:
    """Encodes the first view alone, by `encode`.

    Returns features fp32 [n, d] and labels int64 [n]. normalise: scales the features to unit length.
    """
    x, labels = encode(network, loader, augment)
    return (F.normalize(x[:, 0], dim=1) if normalise else x[:, 0]), labels


class TrunkAndOutput(nn.Module):
    """Computes features and outputs in one forward pass, side by side.

    [N, C, S, S] -> [N, width + dim].
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk(encoder)
        self.head = encoder.get_submodule(classifier_name(encoder))
        self.width = feature_dim(encoder)

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images)
        return torch.cat([features, self.head(features)], dim=1)


def in_order(
    source: Source, size: int, options: DataOptions, device: torch.device, sampler: Sampler | None = None, **crops: Any
) -> Loader:
    """Makes a loader of every sample once.

    The order is that of the data set, or of `sampler`. crops: arguments of `Loader` about the crops.
    """
    in_turn = dict(shuffle=False, drop_last=False, rank=rank(), world_size=world_size())
    sampler = sampler or Sampler(len(source), max(256, world_size()), 0, **in_turn)  # type: ignore[arg-type]
    how = dict(workers=options.workers, device=device, skip_bad_images=options.skip_bad_images)
    return Loader(source, sampler, size=size, **how, **crops)  # type: ignore[arg-type]


def centre_crops(
    source: Source,
    recipe: Recipe,
    size: int,
    options: DataOptions,
    device: torch.device,
    sampler: Sampler | None = None,
) -> Loader:
    """Makes a loader of one view: the central square of the recipe."""
    return in_order(source, size, options, device, sampler, views=1, eval_crop=recipe.centre)


@torch.no_grad()
def settle_batchnorm(
    encoder: nn.Module, source: Source, recipe: Recipe, size: int, options: DataOptions, device: torch.device
) -> bool:
    """Gives an untrained encoder the BatchNorm statistics of the data.

    Running statistics start at mean 0 and variance 1, unlike those of the data. With these initial values all features
    would nearly coincide in evaluation mode, and every trained encoder would look better. The new statistics are means
    over the first 64 batches of 256, the same on every rank. Returns False if there is no BatchNorm layer.
    """
    layers = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    sampler = Sampler(len(source), min(256, len(source)), 0)
    batches = centre_crops(source, recipe, size, options, device, sampler).epoch(0)
    augment = Augment(recipe.for_evaluation(), 0)
    momenta = [layer.momentum for layer in layers]
    with eval_mode(encoder), contextlib.closing(batches):
        for layer in layers:
            layer.reset_running_stats()
            layer.train().momentum = None  # None: all batches weigh the same
        for batch in itertools.islice(batches, 64 if layers else 0):
            encoder(augment(batch.crops[:, 0], batch.index, 0))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.eval().momentum = momentum
    return bool(layers)
