"""Measures the cost of a training step in addition to its encoders.

    python -m benchmarks.training_step                    # ResNet-18, 64 px, batch 64, K 4,096; one thread
    python -m benchmarks.training_step --device cuda      # ResNet-50, 224 px, bf16, batch 256, K 65,536

"Encoders" is query forward and backward and key forward, of the same modules that the step uses.
The step also has the head, the momentum update, the shuffle, the queue and the optimiser.
On a GPU it has the augmentations too. On a CPU the images are augmented before, for all contenders.
The step is also compared with the step as MoCo's paper writes it (reference_step.py).
That reference step is fp32, eager and NCHW, and gets finished images on every device.
On a GPU host-device synchronisations are counted as well.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Row, Times, alternate, device_of, parser, ratio, report
from benchmarks.reference_step import ReferenceStep
from moco.builder import MoCo
from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.loader import Batch
from moco.distributed.global_batch import GlobalBatch
from moco.encoders import build_encoder
from moco.losses import WeightedLoss
from moco.pretrain.step import AMP_DTYPES, TrainingStep
from moco.timing import as_line, shares, timeline


class Augmented:
    """Replaces the augmentations where they are not counted.

    It gives images that were augmented before.
    """

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __call__(self, crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
        return self.images[view][index]


def synchronisations(step: TrainingStep, batch: Batch) -> int:
    """Returns how often the host waits for the GPU in a step.

    The step neither prints nor saves.
    """
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step(batch, 0, [len(batch.index)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in said)


def main(argv: list[str] | None = None) -> None:
    command = parser(__doc__)
    command.set_defaults(rounds=15)  # the first row is a small difference of large times
    options = command.parse_args(argv)
    device = device_of(options)
    gpu = device.type == "cuda"
    arch, size, n, length, amp = ("resnet50", 224, 256, 65536, "bf16") if gpu else ("resnet18", 64, 64, 4096, "off")
    if options.trial:
        arch, size, n, length = "smallcnn", 16, 8, 32
    torch.backends.cudnn.benchmark = True
    crops = torch.randint(0, 256, (n, 2, size, size, 3), dtype=torch.uint8, device=device)
    batch = Batch(crops, torch.arange(n, device=device), torch.full((n,), -1, device=device))
    augment = Augment(find_recipe("v2"), 0, compile=gpu)
    layout = torch.channels_last if gpu else torch.contiguous_format  # main_moco.py's defaults
    views = [augment(crops[:, view], batch.index, 0, view).contiguous(memory_format=layout) for view in (0, 1)]

    encoder = build_encoder(arch, 128, mlp=True, image_size=size)
    plain = ReferenceStep(copy.deepcopy(encoder).to(device), 128, length, T=0.2)
    model = MoCo(encoder.to(memory_format=layout), K=length, device=device)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=1e-4, fused=True)
    prepare: Any = augment if gpu else Augmented(views)
    step = TrainingStep(model, WeightedLoss(1.0, 0.2), optimizer, prepare, GlobalBatch(), amp=amp, channels_last=gpu)
    slope = torch.randn(n, 128, device=device)

    def encoders() -> None:
        with torch.autocast(device.type, AMP_DTYPES.get(amp), enabled=amp != "off"):
            q = model.encoder_q(views[0])
            with torch.no_grad():
                model.encoder_k(views[1])
        q.backward(slope.to(q.dtype))
        model.encoder_q.zero_grad(set_to_none=True)

    finished = [view.contiguous() for view in views]
    contenders = {
        "step": lambda: step(batch, 0, [n]),
        "encoders": encoders,
        "reference step": lambda: plain(finished[0], finished[1]),
    }
    times: Times = alternate(contenders, options.rounds, device, warm=5 if gpu and not options.trial else 1)
    beside = 100 * (1 - ratio(times, "encoders", "step"))
    rows = [
        Row("step without its encoders", "the whole step", beside, "%", at_most=5),
        Row("step, images/s", "reference step", ratio(times, "reference step", "step"), at_least=3 if gpu else None),
    ]
    if gpu:
        rows.append(Row("host-device synchronisations in a step", "none", synchronisations(step, batch), "", at_most=0))
    timeline.start(device)
    before = timeline.totals()
    for _ in range(options.rounds):
        step(batch, 0, [n])
    where = shares(before, timeline.totals())
    print(f"the step: {as_line(where)}")
    settings = {"arch": arch, "image_size": size, "batch": n, "K": length, "amp": amp}
    print(f"{arch}, {size} px, batch {n}, K {length}, --amp {amp}, {torch.get_num_threads()} threads")
    report("training_step", options, rows, seconds=times, shares=where, threads=torch.get_num_threads(), **settings)


if __name__ == "__main__":
    main()
