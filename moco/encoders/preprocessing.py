"""The preprocessing of a photograph for an encoder.

Key names of a checkpoint do not tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moco.data.augment.recipes import IMAGENET_MEAN, IMAGENET_STD, RECIPES, Triple, find_recipe
from moco.data.boxes import centre_box
from moco.data.datasets import defaults_of
from moco.data.decode import decode, resample


@dataclass(frozen=True)
class Preprocessing:
    """The central square, of `crop` of the shorter side, resampled to `size` px; then (value / 255 - mean) / std.

    `preprocessing(image)`: a Pillow image or uint8 [H, W, 3] -> fp32 [3, size, size].
    """

    size: int = 224
    crop: float = 0.875
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    @classmethod
    def of_run(cls, options: Mapping[str, Any], size: int | None = None, recipe: str | None = None) -> Preprocessing:
        """Of a run with these `options`, as our checkpoints keep them; what they lack is ImageNet's. InputError for an
        unknown `recipe`."""
        name = recipe or options.get("recipe") or "v1"
        found = find_recipe(name) if recipe or name in RECIPES else RECIPES["v1"]
        return cls(
            int(size or options.get("image_size") or cls.size),
            found.centre,
            found.mean,
            found.std,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        pixels = decode(image) if isinstance(image, Image.Image) else image
        crop = torch.empty((self.size, self.size, 3), dtype=torch.uint8)
        resample(pixels, centre_box((pixels.shape[0], pixels.shape[1]), self.crop), crop)
        return ((crop.float() / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()


def suited(dataset: str, options: Mapping[str, Any]) -> tuple[int, str]:
    """(image size, recipe) of the run with these `options` if it was on `dataset`, else the data set's own: what suits
    one data set need not suit another."""
    size, recipe = defaults_of(dataset)
    if options.get("dataset") == dataset:
        size = options.get("image_size") or size
        recipe = options["recipe"] if options.get("recipe") in RECIPES else recipe
    return size, recipe
