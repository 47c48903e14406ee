"""Measures time and memory of the align + uniform head.

    python -m benchmarks.loss_head [--device cuda]

Forward and backward are measured, and compared with two other computations.
One is its two matrix products alone, in one piece: similarities N×K, and their product with the queue.
The other is the head as published code writes it, which holds all similarities.
`make bench` runs it on one CPU thread, with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import Row, alternate, device_of, number, parser, ratio, report
from benchmarks.reference_step import ReferenceStep
from moco.losses import WeightedLoss


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Returns the peak memory in bytes that `work` adds.

    torch's allocators count it. Memory that was allocated before is not included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events: Any = profiler.profiler
    changes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(argv)
    device = device_of(options)
    n, dim, length, longer = (8, 16, 512, 1024) if options.trial else (256, 128, 65536, 2**20)
    raw = torch.randn(n, dim, device=device, requires_grad=True)
    k = F.normalize(torch.randn(n, dim, device=device), dim=1)
    long_queue = F.normalize(torch.randn(dim, longer, device=device), dim=0)
    queue = long_queue[:, :length].contiguous()
    head = WeightedLoss(0.0, align_w=3.0, unif_w=1.0, unif_t=3.0)
    published = ReferenceStep(torch.nn.Linear(1, 1, device=device), 1, 1, weights=(0.0, 3.0, 1.0)).loss

    def trained(loss: Callable[[Tensor, Tensor, Tensor], Any], over: Tensor) -> Callable[[], Tensor]:
        def work() -> Tensor:
            raw.grad = None
            value = loss(F.normalize(raw, dim=1), k, over)
            getattr(value, "loss", value).backward()
            assert raw.grad is not None
            return raw.grad

        return work

    q = F.normalize(raw, dim=1).detach()
    ours, theirs = trained(head, queue), trained(published, queue)
    torch.testing.assert_close(ours().clone(), theirs(), rtol=1e-3, atol=1e-5)
    similarities, product = queue.new_empty(n, length), torch.empty_like(q)  # no new memory: the faster way
    contenders = {
        "head": ours,
        "products": lambda: torch.mm(torch.mm(q, queue, out=similarities), queue.t(), out=product),
        "reference": theirs,
        f"head, K = {longer}": trained(head, long_queue),
    }
    times = alternate(contenders, options.rounds, device)
    memory = {"head": peak_bytes(ours, device), "reference": peak_bytes(theirs, device)}
    per_entry = ratio(times, f"head, K = {longer}", "head") * length / longer
    target = 1.5 if device.type == "cpu" else None
    rows = [
        Row("head, time", "its two matrix products", ratio(times, "head", "products"), at_most=target),
        Row("head, peak extra memory", "reference head", memory["head"] / memory["reference"], at_most=1 / 20),
        Row(f"head, time per queue entry at K = {longer:,}", f"at K = {length:,}", per_entry, at_most=1.05),
        Row("reference head, time", "its two matrix products", ratio(times, "reference", "products")),
    ]
    for name, value in memory.items():
        print(f"{name}: {number(value / 2**20)} MiB at its peak")
    report("loss_head", options, rows, seconds=times, peak_bytes=memory, N=n, C=dim, K=length,
           threads=torch.get_num_threads())  # fmt: skip


if __name__ == "__main__":
    main()
