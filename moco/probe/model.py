"""Builds a probe: encoder, features, classifiers and training batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moco import distributed
from moco.data.augment import Augment
from moco.data.augment.recipes import Recipe
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import Source
from moco.encoders import build_encoder, classifier_name, trunk
from moco.encoders.batchnorm import isolate_batchnorm
from moco.encoders.files import EncoderFile, load_trunk
from moco.errors import InputError
from moco.evaluate.features import settle_batchnorm
from moco.evaluate.layers import OUTPUT, TRUNK, Layers, load_projection
from moco.probe.options import LinclsOptions
from moco.probe.training import Cached, Classifiers, Crops, Stream

Rows = tuple[Tensor, Tensor]  # features [n, d], labels [n]


@dataclass(frozen=True)
class Model:
    """`network`: images [N, 3, S, S] -> features [N, d], part of `encoder`. `note`: for the log."""

    encoder: nn.Module
    network: nn.Module
    classifiers: Classifiers
    note: str


def build(
    options: LinclsOptions,
    origin: EncoderFile | None,
    recipe: Recipe,
    train: Source,
    classes: int,
    device: torch.device,
) -> Model:
    """The encoder is loaded, frozen (but for --finetune) and in evaluation mode; classifiers are new and start as
    MoCo's. On the trunk's features the first of them is the encoder's own."""
    assert options.arch and options.image_size  # resolved
    which = options.features_from
    encoder = build_encoder(
        options.arch, classes if which == TRUNK else 1, image_size=options.image_size, arguments=options.arch_arg
    )
    loaded = load_trunk(encoder, origin) if origin else None
    if which == OUTPUT and not (origin and load_projection(encoder, origin)):
        raise InputError("--features-from output needs a checkpoint of pretraining: pass it as --pretrained")
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder.to(device).requires_grad_(False).eval()
    note = f"no --pretrained: an untrained encoder, drawn from --seed {options.seed}"
    if which == TRUNK:
        linear = encoder.get_submodule(classifier_name(encoder))
        assert isinstance(linear, nn.Linear)
    else:
        layers = Layers(encoder, [which], options.image_size)
        linear = nn.Linear(layers.widths[0], classes, device=device)
    nn.init.normal_(linear.weight, std=0.01)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    linear.requires_grad_(True)
    if origin:
        note = f"{origin.path}: {origin.layout}, {loaded}"
    elif settle_batchnorm(encoder, train, recipe, options.image_size, options, device):
        note += ", with the BatchNorm statistics of the training images"
    if options.finetune:
        encoder.requires_grad_(True)
        normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
        if distributed.world_size() > 1 and normalised:
            if device.type != "cuda":
                raise InputError("--finetune of a network with BatchNorm takes one process on the CPU: start it alone")
            encoder = isolate_batchnorm(encoder, "sync", 2, device)
    classifiers = Classifiers([linear, *(copy.deepcopy(linear) for _ in options.settings()[1:])])
    return Model(encoder, trunk(encoder) if which == TRUNK else layers, classifiers, note)


def stream_of(
    options: LinclsOptions, recipe: Recipe, source: Source, network: nn.Module, device: torch.device,
    features_of: Callable[[Source], Rows],
) -> Stream:  # fmt: skip
    """The inputs of training: augmented crops through the network, images for --finetune, or cached features."""
    assert options.image_size and options.seed is not None  # resolved

    def sampler(n: int) -> Sampler:
        return Sampler(
            n, options.batch_size, options.seed or 0,
            drop_last=options.finetune,  # a last batch of one image would have no BatchNorm statistics
            rank=distributed.rank(), world_size=distributed.world_size(),
        )  # fmt: skip

    if options.cached:
        x, labels = features_of(source)
        return Cached(x, labels, sampler(len(x)))
    augmentations = recipe.for_probe()
    loader = Loader(
        source, sampler(len(source)), size=options.image_size, views=1,
        scale=augmentations.scale, ratio=augmentations.ratio, workers=options.workers, device=device,
        seed=options.seed, skip_bad_images=options.skip_bad_images,
    )  # fmt: skip
    return Crops(loader, Augment(augmentations, options.seed), None if options.finetune else network)
