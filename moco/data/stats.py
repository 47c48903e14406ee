"""Prints mean and standard deviation of each channel, as flags.

    python -m moco.data.stats /data/satellite --channels 13 --value-range 0,10000

It reads the images of train/ (or a folder without splits) as the trainer does, and prints the values for `--mean` and
`--std`. Every image has the same weight, as in training.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from moco.commands import Number, Parser, end_with, run_command
from moco.data.channels import MOST_CHANNELS, PixelFormat, pixel_format
from moco.data.datasets import DATASETS, open_split
from moco.data.decode import BadImage
from moco.data.layouts import SPLITS
from moco.data.source import Source, channels_of
from moco.data.threads import worker_count
from moco.errors import EXIT_OK, InputError

Moments = tuple[np.ndarray, np.ndarray]  # means of a channel's values and of their squares, float64 [C]


def channel_statistics(
    source: Source, workers: int = 1, skip_bad_images: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns mean and standard deviation of each channel, and the bad images.

    Both are float64 [C], of values / 255. The bad images are a line each. The sum over images runs in their order, so
    the result does not depend on `workers`. Raises InputError for an image that cannot be read, unless these are
    skipped, and if none is left.
    """
    first = second = np.zeros(channels_of(source))
    bad = []
    for index, found in _in_order(source, workers):
        if isinstance(found, BadImage):
            line = f"{source.name(index)}: {found}"
            if not skip_bad_images:
                raise InputError(f"{line}; repair or remove it, or pass --skip-bad-images")
            bad.append(line)
        else:
            first = first + found[0]
            second = second + found[1]
    count = len(source) - len(bad)
    if not count:
        raise InputError(f"none of the {len(source)} images can be read; the first: {bad[0]}")
    mean = first / count
    return mean, np.sqrt(np.maximum(0, second / count - mean**2)), bad


def _in_order(source: Source, workers: int) -> Iterator[tuple[int, Moments | BadImage]]:
    """Yields the moments of each image in order, a few images ahead."""

    def look(index: int) -> Moments | BadImage:
        try:
            pixels = source.decode(index)
        except BadImage as problem:
            return problem
        values = pixels.reshape(-1, pixels.shape[-1]) / 255
        return values.mean(0), (values**2).mean(0)

    waiting: deque[tuple[int, Future[Moments | BadImage]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in range(len(source)):
                waiting.append((index, pool.submit(look, index)))
                if len(waiting) > 4 * workers:
                    at, found = waiting.popleft()
                    yield at, found.result()
            while waiting:
                at, found = waiting.popleft()
                yield at, found.result()
        finally:
            pool.shutdown(cancel_futures=True)


def flags(pixels: PixelFormat, value_range: str | None, mean: np.ndarray, std: np.ndarray) -> str:
    """Returns the options for main_moco.py and main_lincls.py."""
    words = [f"--channels {pixels.channels}"] if pixels.channels != 3 else []
    if value_range is not None:
        words.append(f"--value-range={value_range}")
    for name, values in (("--mean", mean), ("--std", std)):
        words.append(f"{name} {','.join(f'{value:.4g}' for value in values)}")
    return " ".join(words)


def parser() -> argparse.ArgumentParser:
    made = Parser(prog="python -m moco.data.stats", description=__doc__.split("\n")[0])
    made.add_argument("data", nargs="?", help="folder with train/ and val/, a folder of images, or a .beton file")
    made.add_argument("--dataset", choices=DATASETS, default="folder", help="kind of data")
    made.add_argument("--split", choices=SPLITS, default="train", help="images to measure")
    made.add_argument("--channels", type=Number(int, 1, MOST_CHANNELS), default=3, help="channels of the images")
    made.add_argument(
        "--value-range", metavar="LOW,HIGH", help="values that become black and white; default: each file's own"
    )
    made.add_argument("--skip-bad-images", action="store_true", help="skip images that cannot be read")
    made.add_argument("-j", "--workers", type=Number(int, 1), help="threads; default: one for each core")
    return made


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        options = parser().parse_args(argv)
        pixels = pixel_format(options.channels, options.value_range)
        source = open_split(options.data, options.dataset, options.split, labels_required=False, pixels=pixels)
        for note in source.notes:
            print(note)
        mean, std, bad = channel_statistics(source, worker_count(options.workers), options.skip_bad_images)
        for line in bad:
            print(f"left out {line}")
        if (std == 0).any():
            constant = ", ".join(str(channel) for channel in np.flatnonzero(std == 0))
            raise InputError(f"channel {constant} (of 0 to {len(std) - 1}) is the same everywhere: leave it out")
        print(f"{len(source) - len(bad)} images; for main_moco.py and main_lincls.py:")
        print(flags(pixels, options.value_range, mean, std))
        return EXIT_OK

    return run_command(run)


if __name__ == "__main__":
    end_with(main)
