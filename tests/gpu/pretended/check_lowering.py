"""The augmentations as torch's compiler lowers them: a few kernels that read and write little."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from moco.data.augment.recipes import RECIPES
from tests.gpu.pretended.lowering import augmentation, lowered


def test_a_view_with_every_operation_is_few_kernels() -> None:
    """Where 256 images of 224 px are .04 GB to read, .08 GB to write, and .15 GB as float32."""
    kernels, moved = augmentation(RECIPES["byol"].view(1), 256)
    assert kernels <= 14
    assert 0.11e9 < moved <= 1.5e9


def test_lowered_functions_are_counted_by_hand() -> None:
    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty((1000, 100), device="cuda:0")
        assert lowered(lambda x: (x + 1).relu() * 2, x) == (1, 2 * 400_000)
        assert lowered(lambda x: x / x.sum(1, keepdim=True), x)[0] in (1, 2)
        kernels, moved = lowered(lambda x: (x - x.mean()).t().contiguous(), x)
    assert 2 <= kernels <= 3 and 3 * 400_000 <= moved < 3.1 * 400_000
