"""The batched augmentations against torchvision's functional ops, sample by sample, on float images.

Float, because torchvision rounds uint8 images to 8 bits after every operation and ours are rounded never; the recipe is the
same, the order of rounding is not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode

import moco  # noqa: F401  (before torchvision: it makes the import work beside a CPU torch)
from moco.data.augment import Augment, Parameters, draw
from moco.data.recipes import RECIPES, Jitter, Recipe, View

FP32 = 1 / 255
BF16 = 3 / 255

EVERYTHING = Recipe(
    "everything",
    "the tests",
    (
        View(rotation=20, jitter=Jitter(0.8, 0.8, 0.8, 0.5, p=0.9), grayscale=0.3, blur=0.6, solarize=0.3, flip=0.5),
        View(grayscale=0.3, grayscale_first=True, jitter=Jitter(0.4, 0.4, 0.4, 0.4), blur=0.6, sigma=(0.1, 1.0), flip=0.5),
    ),
)


def reference(image: Tensor, p: Parameters, i: int, view: View) -> Tensor:
    """Sample i by torchvision: float image [3, S, S] in [0, 1] -> the same."""
    x = image
    if p.degrees is not None:
        x = TF.rotate(x, float(p.degrees[i]), interpolation=InterpolationMode.BILINEAR)
    if p.grayscale is not None and view.grayscale_first and p.grayscale[i]:
        x = TF.rgb_to_grayscale(x, num_output_channels=3)
    if p.order is not None and p.factors is not None:
        brightness, contrast, saturation, hue = p.factors[i].tolist()
        for operation in p.order[i].tolist():
            if operation == 0:
                x = TF.adjust_brightness(x, brightness)
            elif operation == 1:
                x = TF.adjust_contrast(x, contrast)
            elif operation == 2:
                x = TF.adjust_saturation(x, saturation)
            else:
                x = TF.adjust_hue(x, hue)
    if p.grayscale is not None and not view.grayscale_first and p.grayscale[i]:
        x = TF.rgb_to_grayscale(x, num_output_channels=3)
    if p.sigma is not None and p.sigma[i] > 0:
        x = TF.gaussian_blur(x, kernel_size=[23, 23], sigma=[float(p.sigma[i])] * 2)
    if p.solarize is not None and p.solarize[i]:
        x = TF.solarize(x, threshold=0.5)
    if p.flip is not None and p.flip[i]:
        x = TF.horizontal_flip(x)
    return x


def pictures(n: int, size: int = 16, seed: int = 0) -> Tensor:
    """uint8 [n, size, size, 3] of four kinds in turn: noise, flat colours, smooth ramps, black and white blocks."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, 256, (n, size, size, 3))
    out[1::4] = rng.integers(0, 256, (len(out[1::4]), 1, 1, 3))
    ramp = np.linspace(0, 255, size)[:, None, None] * rng.random((len(out[2::4]), 1, 1, 3))
    out[2::4] = np.broadcast_to(ramp, out[2::4].shape)
    out[3::4] = 255 * np.kron(rng.integers(0, 2, (len(out[3::4]), size // 4, size // 4, 3)), np.ones((4, 4, 1)))
    return torch.from_numpy(out.astype(np.uint8))


def floats(crops: Tensor) -> Tensor:
    return crops.permute(0, 3, 1, 2).float() / 255


def denormalised(images: Tensor, recipe: Recipe) -> Tensor:
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (recipe.mean, recipe.std))
    return images.float() * std + mean


def by_torchvision(crops: Tensor, index: Tensor, recipe: Recipe, seed: int, epoch: int, view: int) -> Tensor:
    p = draw(recipe.view(view), seed, epoch, index, view)
    return torch.stack([reference(x, p, i, recipe.view(view)) for i, x in enumerate(floats(crops))])


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", sorted(RECIPES) + ["everything"])
@pytest.mark.parametrize("view", [0, 1])
def test_recipes_equal_torchvision_sample_by_sample(name: str, view: int) -> None:
    recipe = RECIPES.get(name, EVERYTHING)
    crops, index = pictures(48), torch.arange(48) * 7
    expected = by_torchvision(crops, index, recipe, seed=3, epoch=2, view=view)
    exact = Augment(recipe, 3)(crops, index, 2, view)
    assert exact.dtype == torch.float32 and exact.is_contiguous(memory_format=torch.channels_last)
    assert worst(denormalised(exact, recipe), expected) <= FP32
    rounded = Augment(recipe, 3, dtype=torch.bfloat16)(crops, index, 2, view)
    assert rounded.dtype == torch.bfloat16
    assert worst(denormalised(rounded, recipe), expected) <= BF16


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6), view=st.integers(0, 3), size=st.sampled_from([12, 20, 32]))
def test_any_key_equals_torchvision(seed: int, epoch: int, view: int, size: int) -> None:
    crops, index = pictures(8, size, seed % 1000), torch.arange(8) + seed % 10**9
    ours = Augment(EVERYTHING, seed)(crops, index, epoch, view)
    expected = by_torchvision(crops, index, EVERYTHING, seed, epoch, view)
    assert worst(denormalised(ours, EVERYTHING), expected) <= FP32
