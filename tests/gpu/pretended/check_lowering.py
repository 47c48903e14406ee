"""The augmentations as torch's compiler lowers them: a few kernels that read and write little."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from moco.data.augment.recipes import RECIPES
from moco.losses.logsumexp import softmax_of_rows
from tests.gpu.pretended.lowering import augmentation, lowered
from tests.gpu.pretended.missing_kernels import KERNELS_OF_LONG_ROWS, LONGEST_ROW_OF_A_BLOCK


def test_a_view_with_every_operation_is_few_kernels() -> None:
    """Where 256 images of 224 px are .04 GB to read, .08 GB to write, and .15 GB as float32."""
    kernels, moved = augmentation(RECIPES["byol"].view(1), 256)
    assert kernels <= 14
    assert 0.11e9 < moved <= 1.5e9


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(256, 8192), (512, 4096), (32, 65536)],  # a chunk of the queue for one GPU's batch, a larger one, an eighth
)
def test_the_softmax_of_a_chunk_is_one_kernel(rows: int, columns: int) -> None:
    """Unless the rows are few and long. check_counts.py counts it as said here."""
    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty((rows, columns), device="cuda:0")
        values = torch.empty((rows, 8), device="cuda:0")[:, :1]
        kernels, moved = lowered(torch.func.functionalize(softmax_of_rows), x, values)
    assert kernels == (1 if columns <= LONGEST_ROW_OF_A_BLOCK else KERNELS_OF_LONG_ROWS)
    if kernels == 1:
        assert moved <= 2.01 * x.nbytes


def test_lowered_functions_are_counted_by_hand() -> None:
    with FakeTensorMode(shape_env=ShapeEnv()):
        x = torch.empty((1000, 100), device="cuda:0")
        assert lowered(lambda x: (x + 1).relu() * 2, x) == (1, 2 * 400_000)
        assert lowered(lambda x: x / x.sum(1, keepdim=True), x)[0] in (1, 2)
        kernels, moved = lowered(lambda x: (x - x.mean()).t().contiguous(), x)
    assert 2 <= kernels <= 3 and 3 * 400_000 <= moved < 3.1 * 400_000
