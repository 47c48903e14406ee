"""Measures images/s with SwAV's six small crops and without them.

    python -m benchmarks.multi_crop --images /data/train          # FOLDER/<class>/<image>; default: made-up JPEGs
    python -m benchmarks.multi_crop --device cuda --images ...    # ResNet-50, 224 and 96 px, bf16, batch 256

The small crops have the same relative side and share of the area as in `--crops 2x224@.14-1+6x96@.05-.14`.
The contenders take turns. Each trains through the same images, one epoch a round.
An epoch goes from JPEG files to updated weights: decoding, both kinds of crops, augmentations and step.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import Row, alternate, device_of, number, parser, ratio, report
from benchmarks.photographs import Ours, size_for, some_images
from moco.data.crops import MultiCrop, SmallCrops
from moco.data.threads import worker_count

SMALL = 6
SIDE = 96 / 224  # of a small crop, as a share of a large one's
WAYS = {"one direction": False, "--symmetric": True}


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=Path, help="FOLDER/<class>/<image>; default: made-up ones")
    options.set_defaults(rounds=5)
    with tempfile.TemporaryDirectory() as scratch:
        run(options.parse_args(argv), Path(scratch))


def run(options: Any, scratch: Path) -> None:
    device = device_of(options)
    arch, size, batch, amp = size_for(device, options.trial)
    folder = some_images(options.images, scratch / "images", 4 * batch)
    crops = MultiCrop(size, (0.14, 1.0), SmallCrops(SMALL, round(SIDE * size), (0.05, 0.14)))
    contenders = {
        f"{name}, {way}": Ours(folder, arch, size, batch, amp, device, of_run, symmetric).train
        for way, symmetric in WAYS.items()
        for name, of_run in (("large crops", None), ("multi-crop", crops))
    }
    times = alternate(contenders, options.rounds, device, warm=1)
    speeds = {name: 4 * batch / statistics.median(seconds) for name, seconds in times.items()}
    for name, speed in speeds.items():
        print(f"{name}: {number(speed)} images/s")
    rows = [
        Row(
            f"images/s with {SMALL} small crops of {crops.small.size} px, {way}",
            f"two crops of {size} px alone",
            ratio(times, f"large crops, {way}", f"multi-crop, {way}"),
        )
        for way in WAYS
    ]
    kind = "made-up JPEGs of 500×375" if options.images is None else "photographs"
    report("multi_crop", options, rows, seconds=times, images_per_s=speeds, images=kind, arch=arch, image_size=size,
           batch=batch, amp=amp, cores_used=worker_count())  # fmt: skip


if __name__ == "__main__":
    main()
