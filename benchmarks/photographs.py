"""Compares images/s from JPEG files to updated weights with lightly's MoCo.

    benchmarks/peers.sh                                            # once: lightly, in an environment of its own
    python -m benchmarks.photographs --images /data/train          # FOLDER/<class>/<image>; default: made-up JPEGs
    python -m benchmarks.photographs --device cuda --images ...    # ResNet-50, 224 px, bf16, batch 256

This trainer's parts are compared with lightly's MoCo v2 recipe.
Encoder, image size, batch, photographs and cores are the same. The contenders train through the same images, in turns.
The peer, lightly, runs in a process of its own, which sleeps between its turns.
The third contender is the encoders alone: query forward and backward, key forward, as in this trainer.
A program in which all other parts took no time would take as long as they do.
So by Amdahl's law no speed-up is larger than (peer's time) / (encoders' time).
A row shows which share of this limit is reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.data_loading import made_up_photos
from benchmarks.measuring import Row, Times, alternate, device_of, number, parser, ratio, report, wait_for
from moco.builder import MoCo
from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.crops import MultiCrop
from moco.data.folder import FolderSource
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.threads import worker_count
from moco.distributed.global_batch import GlobalBatch
from moco.encoders import build_encoder
from moco.losses import WeightedLoss
from moco.pretrain.step import AMP_DTYPES, TrainingStep

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers" / "bin" / "python"


class Ours:
    """Holds loader, augmentations and step as in main_moco.py.

    It trains with --bn local, because the peer has no shuffle.
    """

    def __init__(
        self,
        folder: Path,
        arch: str,
        size: int,
        batch: int,
        amp: str,
        device: torch.device,
        crops: MultiCrop | None = None,
        symmetric: bool = False,
    ) -> None:
        source, recipe = FolderSource(folder), find_recipe("v2")
        small = crops.small if crops else None
        scale = crops.scale if crops else recipe.scale
        sampler = Sampler(len(source), batch, 0)
        self.loader = Loader(source, sampler, size=size, scale=scale, small=small, device=device)
        nhwc = device.type == "cuda"
        encoder = build_encoder(arch, 128, mlp=True, image_size=size)
        layout = torch.channels_last if nhwc else torch.contiguous_format
        model = MoCo(encoder.to(memory_format=layout), K=4096, bn="local", device=device)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(model.parameters(), 0.06, momentum=0.9, fused=True)
        self.augment = Augment(recipe, 0, compile=nhwc)
        head = WeightedLoss(1.0, 0.1)
        self.step = TrainingStep(
            model, head, optimizer, self.augment, GlobalBatch(), amp=amp, channels_last=nhwc, symmetric=symmetric
        )
        self.batch, self.amp, self.device, self.epoch = batch, amp, device, 0
        self.images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
        self.slope = torch.randn(batch, 128, device=device)

    def train(self) -> None:
        for batch in self.loader.epoch(self.epoch):
            self.step(batch, self.epoch, [self.batch])
        self.epoch += 1

    def encoders(self) -> None:
        model = self.step.moco
        for _ in range(len(self.loader)):
            with torch.autocast(self.device.type, AMP_DTYPES.get(self.amp), enabled=self.amp != "off"):
                q = model.encoder_q(self.images)
                with torch.no_grad():
                    model.encoder_k(self.images)
            q.backward(self.slope.to(q.dtype))
            model.encoder_q.zero_grad(set_to_none=True)
        wait_for(self.device)


class Peer:
    """Runs lightly's recipe in its own environment and process."""

    def __init__(self, folder: Path, arch: str, size: int, batch: int, workers: int, device: torch.device) -> None:
        script = Path(__file__).with_name("peer_lightly.py")
        words = [str(PEERS), str(script), str(folder), "--arch", arch, "--size", str(size), "--batch", str(batch)]
        self.process = subprocess.Popen(
            [*words, "--workers", str(workers), "--device", device.type],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(workers)},
        )  # fmt: skip

    def train(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise SystemExit("error: the peer ended; see its message above, or make it anew with benchmarks/peers.sh")
        json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def some_images(images: Path | None, folder: Path, count: int) -> Path:
    """Fills `folder` with links to `count` images, and returns it.

    images: the folder to link from, with an even sample of the classes; None for made-up JPEGs.
    """
    if images is None:
        made_up_photos(folder, count)
        return folder
    everything = FolderSource(images)
    for index in np.linspace(0, len(everything) - 1, count).astype(int).tolist():
        link = folder / everything.paths[index]
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(Path(everything.name(index)).absolute())
    return folder


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=Path, help="FOLDER/<class>/<image>; default: made-up ones")
    options.add_argument("--number", type=int, help="images per round; default: 8 batches")
    with tempfile.TemporaryDirectory() as scratch:
        run(options.parse_args(argv), Path(scratch))


class Size(NamedTuple):
    """Holds the size of a measured run."""

    arch: str
    image: int  # px
    batch: int
    amp: str


def size_for(device: torch.device, trial: bool) -> Size:
    """Returns the size for a device, or for a trial.

    It also sets torch's number of threads, and lets cuDNN choose its kernels by benchmark.
    """
    torch.set_num_threads(1 if trial else worker_count())
    torch.backends.cudnn.benchmark = True
    of_device = Size("resnet50", 224, 256, "bf16") if device.type == "cuda" else Size("resnet18", 64, 64, "off")
    return Size("smallcnn", 32, 4, of_device.amp) if trial else of_device


def run(options: Any, scratch: Path) -> None:
    device = device_of(options)
    gpu = device.type == "cuda"
    arch, size, batch, amp = size_for(device, options.trial)
    folder = some_images(options.images, scratch / "images", options.number or 8 * batch)
    workers = worker_count()
    ours = Ours(folder, arch, size, batch, amp, device)
    contenders = {"ours": ours.train, "encoders": ours.encoders}
    peer = None
    if PEERS.exists() and not options.trial:
        peer = Peer(folder, arch, size, batch, workers, device)
        contenders["lightly"] = peer.train
    start = time.perf_counter()
    times: Times = alternate(contenders, options.rounds, device, warm=1)
    print(f"{options.rounds} rounds of {len(ours.loader) * batch} images in {time.perf_counter() - start:.0f} s:"
          f" {arch}, {size} px, batch {batch}, {workers} cores")  # fmt: skip
    for name, seconds in times.items():
        print(f"{name}: {number(len(ours.loader) * batch / float(np.median(seconds)))} images/s")
    what = "JPEG files to updated weights, images/s"
    least = None if gpu else 0.8
    rows = [Row(f"{what}: share of Amdahl's limit", "encoders alone", ratio(times, "encoders", "ours"), at_least=least)]
    if peer is not None:
        rows.append(Row(what, "lightly's MoCo v2", ratio(times, "lightly", "ours"), at_least=2 if gpu else None))
        rows.append(Row("Amdahl's limit to that", "lightly's MoCo v2", ratio(times, "lightly", "encoders")))
        peer.close()
    kind = "made-up JPEGs of 500×375" if options.images is None else "photographs"
    report("photographs", options, rows, seconds=times, images=kind, per_round=len(ours.loader) * batch, arch=arch,
           image_size=size, batch=batch, amp=amp, cores_used=workers)  # fmt: skip


if __name__ == "__main__":
    main()
