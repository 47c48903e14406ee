"""Computes rounding errors of the loss head with TF32 and bfloat16 products.

    python -m benchmarks.head_rounding

The head has two matrix products. They are computed on the CPU in TF32, or split into products of bfloat16.
Operands are rounded as a tensor core rounds them; sums are in fp32.
Compared with float64 are the log-sum-exp of 256 x 128 queries over 65,536 keys, and its gradient.
The errors should be below 1e-4.
Some keys of each query lie close to it, as after training, so that a few similarities dominate the softmax.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import performance_page
from benchmarks.measuring import RESULTS, commit
from moco.run.provenance import machine

FILE = RESULTS / "head_rounding-counted.json"
N, C, K = 256, 128, 65536
NEAR = 4  # keys of each query at a cosine of about .95
COLUMNS = 8192  # at a time
TARGET = 1e-4

Product = Callable[[Tensor, Tensor], Tensor]


def tf32(x: Tensor) -> Tensor:
    """Returns x as fp32 with 10 bits of fraction, rounded to nearest."""
    bits = x.view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 numbers, as fp32, whose sum is x to 16 bits."""
    high = x.bfloat16().float()
    return high, (x - high).bfloat16().float()


def tf32_product(a: Tensor, b: Tensor) -> Tensor:
    return tf32(a) @ tf32(b)


def split_product(a: Tensor, b: Tensor) -> Tensor:
    """Returns the product of two matrices as a sum of three products.

    The fourth product, of the two low parts, is below the precision of fp32.
    """
    a_high, a_low = split(a)
    b_high, b_low = split(b)
    return a_high @ b_high + (a_high @ b_low + a_low @ b_high)


PRODUCTS: dict[str, Product] = {"fp32": torch.mm, "TF32": tf32_product, "three products of bfloat16": split_product}


def keys_and_queries(n: int, dim: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = F.normalize(torch.randn(n, dim, generator=generator), dim=1)
    queue = F.normalize(torch.randn(length, dim, generator=generator), dim=1)
    near = F.normalize(q.repeat(NEAR, 1) + 0.029 * torch.randn(NEAR * n, dim, generator=generator), dim=1)
    queue[: len(near)] = near
    return q, queue.t().contiguous()


def head(q: Tensor, queue: Tensor, temperature: float, product: Product) -> tuple[Tensor, Tensor]:
    """Returns the log-sum-exp [n] and its gradient in q [n, dim].

    product: the function that computes the matrix products. All else is in the dtype of q.
    """
    similarities = torch.cat([product(q / temperature, part.contiguous()) for part in queue.split(COLUMNS, 1)], dim=1)
    value = similarities.logsumexp(dim=1)
    shares = similarities.sub_(value[:, None]).exp_()
    parts = zip(shares.split(COLUMNS, 1), queue.split(COLUMNS, 1), strict=True)
    gradient = sum((product(s.contiguous(), part.t().contiguous()) for s, part in parts), torch.zeros_like(q))
    return value, gradient / temperature


def errors(q: Tensor, queue: Tensor, temperature: float) -> dict[str, dict[str, float]]:
    """Returns the largest errors of each kind of product.

    value: the error of the log-sum-exp. gradient: the error of the gradient as a share of its norm.
    """
    value, gradient = head(q.double(), queue.double(), temperature, torch.mm)
    found = {}
    for name, product in PRODUCTS.items():
        rounded, slope = head(q, queue, temperature, product)
        off = (slope.double() - gradient).norm(dim=1) / gradient.norm(dim=1)
        found[name] = {"value": float((rounded.double() - value).abs().max()), "gradient": float(off.max())}
    return found


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(argv)
    q, queue = keys_and_queries(N, C, K)
    found = {temperature: errors(q, queue, float(temperature)) for temperature in ("0.07", "0.2")}
    record: dict[str, Any] = {
        "topic": "head_rounding",
        "machine": machine(torch.device("cpu")),
        "commit": commit(),
        "errors": found,
    }
    FILE.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(performance_page.section("head_rounding-counted", RESULTS))
    performance_page.main()


if __name__ == "__main__":
    main()
