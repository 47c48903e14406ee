"""Builds the model of a probe: encoder, features and classifiers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moco.data.augment import Augment
from moco.data.augment.recipes import Recipe
from moco.data.source import Source
from moco.encoders import build_encoder, classifier_name, trunk
from moco.encoders.files import EncoderFile, load_trunk
from moco.errors import InputError
from moco.evaluate.features import centre_crops, extract_features, settle_batchnorm
from moco.evaluate.layers import OUTPUT, TRUNK, Layers, load_projection
from moco.probe.options import LinclsOptions
from moco.probe.training import Classifiers
from moco.run.options import CommonOptions

Rows = tuple[Tensor, Tensor]  # features [n, d], labels [n]


@dataclass(frozen=True)
class Model:
    """Holds encoder, features and classifiers of a probe.

    network: images [N, C, S, S] -> features [N, d], part of `encoder`. note: for the log.
    """

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
    count: int,
    device: torch.device,
) -> Model:
    """Builds the encoder, loaded, frozen and in evaluation mode, and new classifiers.

    There are `count` classifiers, which start as MoCo's. On the trunk's features the first of them is the encoder's
    own.
    """
    assert options.arch and options.image_size  # resolved
    which = options.features_from
    encoder = build_encoder(
        options.arch,
        classes if which == TRUNK else 1,
        image_size=options.image_size,
        arguments=options.arch_arg,
        channels=options.pixel_format.channels,
    )
    note = load_frozen(encoder, options, options.image_size, origin, recipe, train, device, which == OUTPUT)
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
    classifiers = Classifiers([linear, *(copy.deepcopy(linear) for _ in range(count - 1))])
    return Model(encoder, trunk(encoder) if which == TRUNK else layers, classifiers, note)


def load_frozen(
    encoder: nn.Module,
    options: CommonOptions,
    size: int,
    origin: EncoderFile | None,
    recipe: Recipe,
    train: Source,
    device: torch.device,
    projection: bool = False,
) -> str:
    """Loads `origin` into the encoder and freezes it; returns a note.

    Without `origin`, BatchNorm takes the statistics of `train`. projection: with the head that pretraining used.
    InputError if `origin` has none, or does not fit.
    """
    loaded = load_trunk(encoder, origin) if origin else None
    if projection and not (origin and load_projection(encoder, origin)):
        raise InputError("--features-from output needs a checkpoint of pretraining: pass it as --pretrained")
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder.to(device).requires_grad_(False).eval()
    if origin:
        return f"{origin.path}: {origin.layout}, {loaded}"
    note = f"no --pretrained: an untrained encoder, drawn from --seed {options.seed}"
    if settle_batchnorm(encoder, train, recipe, size, options, device):
        note += ", with the BatchNorm statistics of the training images"
    return note


@dataclass(frozen=True)
class Features:
    """Holds features of centre crops, extracted before training.

    held_out: to choose one of several classifiers by. validation None: the network is trained, so its features are
    extracted after each epoch.
    """

    validation: Rows | None
    held_out: Rows | None


@dataclass
class Setup:
    """Holds the data and the model of a probe.

    fit, val: the images to train and to validate on. resumed: the checkpoint of the probe that goes on.
    """

    options: LinclsOptions
    device: torch.device
    recipe: Recipe
    fit: Source
    held_out: Source | None
    val: Source
    model: Model
    resumed: EncoderFile | None = None

    def features_of(self, source: Source) -> Rows:
        """Extracts features of the centre crops, without augmentation."""
        assert self.options.image_size and self.options.seed is not None  # resolved
        crops = centre_crops(source, self.recipe, self.options.image_size, self.options, self.device)
        return extract_features(self.model.network, crops, Augment(self.recipe.for_evaluation(), self.options.seed))
