"""Why the head's products stay in fp32: what TF32 would do to them, and that three products of bfloat16 would not."""

from __future__ import annotations

import pytest
import torch

from benchmarks.head_rounding import TARGET, errors, keys_and_queries, split, tf32


def test_rounding_is_that_of_a_tensor_core() -> None:
    x = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-11 + 2.0**-20, -1 - 2.0**-12, 3.0])
    assert tf32(x).tolist() == [1.0, 1 + 2.0**-10, 1 + 2.0**-10, -1.0, 3.0]
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert ((tf32(x) - x).abs() / x.abs()).max() <= 2.0**-11
    high, low = split(x)
    assert ((high + low - x).abs() / x.abs()).max() <= 2.0**-16


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_tf32_is_not_exact_to_a_ten_thousandth_and_a_split_is(temperature: float) -> None:
    found = errors(*keys_and_queries(32, 128, 4096), temperature)
    assert max(found["fp32"].values()) < TARGET / 10
    assert max(found["three products of bfloat16"].values()) < TARGET
    assert max(found["TF32"].values()) > TARGET
