"""Prepares a photograph for an encoder.

The key names of a checkpoint do not say how to do it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco.data.augment.recipes import IMAGENET_MEAN, IMAGENET_STD, RECIPES, PerChannel, find_recipe
from moco.data.boxes import centre_box
from moco.data.channels import PixelFormat, pixel_format, statistics, to_format
from moco.data.datasets import defaults_of
from moco.data.decode import decode, decode_deep, decode_whole, resample
from moco.data.deep_colour import deep_colour_file
from moco.run.options import DataOptions


@dataclass(frozen=True)
class Preprocessing:
    """Resamples the central square to `size` pixels and normalises it.

    crop: side of the square as a share of the image's shorter side.
    mean, std: per channel. Normalised is (value / 255 - mean) / std.
    value_range: that of --value-range, for values of more than 8 bits.
    `preprocessing(image)`: a Pillow image or an array [H, W, C] -> fp32 [C, size, size]. C is the length of `mean`.
    """

    size: int = 224
    crop: float = 0.875
    mean: PerChannel = IMAGENET_MEAN
    std: PerChannel = IMAGENET_STD
    value_range: str | None = None

    @property
    def pixels(self) -> PixelFormat:
        return pixel_format(len(self.mean), self.value_range)

    @classmethod
    def of_run(cls, options: Mapping[str, Any], size: int | None = None, recipe: str | None = None) -> Preprocessing:
        """Returns the preprocessing of a run with the `options` of its checkpoint.

        Missing options have the values of ImageNet. InputError for an unknown `recipe`.
        """
        name = recipe or options.get("recipe") or "v1"
        told = _told_images(options)
        channels = told.get("channels", 3)
        found = find_recipe(
            name if recipe or name in RECIPES else "v1",
            None,
            channels,
            *statistics(channels, told.get("mean"), told.get("std")),
            rgb=not told.get("not_rgb", False),
        )
        return cls(
            int(size or options.get("image_size") or cls.size),
            found.centre,
            found.mean,
            found.std,
            told.get("value_range"),
        )

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        if isinstance(image, Image.Image):
            deep = deep_colour_file(image)
            whole = decode_whole(image, self.pixels) if deep is None else decode_deep(deep, self.pixels)
            pixels = decode(image, wanted=self.pixels) if whole is None else whole
        else:
            pixels = np.ascontiguousarray(to_format(image, self.pixels))
        crop = torch.empty((self.size, self.size, len(self.mean)), dtype=torch.uint8)
        resample(pixels, centre_box((pixels.shape[0], pixels.shape[1]), self.crop), crop)
        return ((crop.float() / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()


Options = TypeVar("Options", bound=DataOptions)


def with_images_of(options: Options, before: Mapping[str, Any]) -> Options:
    """Returns `options` with the image settings of an earlier run.

    before: the earlier run's options; 3 channels if they do not say. Options that were typed keep their values.
    Value range, mean and standard deviation are the run's only if the number of channels is the same.
    RGB must also have the same data set, as for the augmentations.
    """
    told = _told_images(before)
    channels = options.channels or told.get("channels", 3)
    rgb = channels == 3 and not told.get("not_rgb", False)
    if told.get("channels", 3) != channels or (rgb and before.get("dataset") != options.dataset):
        told = {}
    value_range = told.get("value_range") if options.value_range is None else options.value_range
    mean = options.mean
    std = options.std
    if mean is None and std is None:
        mean = told.get("mean")
        std = told.get("std")
    not_rgb = options.not_rgb or told.get("not_rgb", False)
    return replace(options, channels=channels, not_rgb=not_rgb, value_range=value_range, mean=mean, std=std)


def _told_images(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a checkpoint's options about images."""
    kinds = {"channels": int, "value_range": str, "mean": str, "std": str, "not_rgb": bool}
    return {name: options[name] for name, kind in kinds.items() if isinstance(options.get(name), kind)}


def suited(dataset: str, options: Mapping[str, Any]) -> tuple[int, str]:
    """Returns (image size, augmentations) for `dataset`.

    They are those of the run with these options if it used the same data set, else the defaults of the data set.
    """
    size, recipe = defaults_of(dataset)
    if options.get("dataset") == dataset:
        size = options.get("image_size") or size
        recipe = options["recipe"] if options.get("recipe") in RECIPES else recipe
    return size, recipe
