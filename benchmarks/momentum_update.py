"""Measures the cost of the key encoder's moving average for a ResNet-50.

    python -m benchmarks.momentum_update [--device cuda]

The update of all parameters at once is compared with a loop over them.
On a GPU torch's profiler counts the launched kernels. On a CPU the operations that PyTorch is asked for are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measuring import Row, alternate, device_of, parser, ratio, report
from moco.encoders import build_encoder
from moco.pretrain.reference import ReferenceMoCo


class _Operations(TorchDispatchMode):
    """Counts the operations that compute; a view needs no kernel."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func.overloadpacket is not torch.ops.aten.detach
        return func(*args, **(kwargs or {}))


def launches(work: Callable[[], Any], device: torch.device) -> int:
    if device.type == "cpu":
        with _Operations() as seen:
            work()
        return seen.count
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(argv)
    device = device_of(options)
    encoder = build_encoder("smallcnn" if options.trial else "resnet50", 128, mlp=True, image_size=None)
    model = ReferenceMoCo(encoder, K=64, device=device)
    contenders = {"at once": super(ReferenceMoCo, model).update_key_encoder, "loop": model.update_key_encoder}
    times = alternate(contenders, options.rounds, device)
    counts = {name: launches(work, device) for name, work in contenders.items()}
    kernels, fast = ("kernels launched", 5) if device.type == "cuda" else ("operations asked for", None)
    rows = [
        Row("momentum update, time saved", "loop over parameters", ratio(times, "loop", "at once"), at_least=fast),
        Row(f"momentum update, {kernels}", f"loop over parameters: {counts['loop']}", counts["at once"], ""),
    ]
    report("momentum_update", options, rows, seconds=times, launches=counts, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
