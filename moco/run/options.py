"""Defines the options that both mains take, and their checks.

Each field of a dataclass is an option. moco/run/flags.py makes the parser from the fields.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from moco.data.augment.recipes import Recipe, find_recipe
from moco.data.channels import PixelFormat, pixel_format, statistics
from moco.data.datasets import DATASETS, LOADERS, has_split, open_split
from moco.data.hub import check_hub, is_hub
from moco.data.source import CACHES, Source
from moco.errors import InputError, flag
from moco.plugins import check_unused, find, is_outside, known_or_outside
from moco.run import flags
from moco.run.saver import Every
from moco.schedules import values_of

RESULTS = "changes results"
EVALUATION = "evaluation"
RUNNING = "does not change results"


# the groups of `--help`; a resumed run is warned about changes in the first
result, evaluation, running = (partial(flags.option, group=title) for title in (RESULTS, EVALUATION, RUNNING))
# parts of the first group
data_option = partial(result, topic="data")
encoder_option = partial(result, topic="encoder")
augmentation_option = partial(result, topic="augmentation")
training_option = partial(result, topic="training")


@dataclass(frozen=True)
class DataOptions:
    """Holds the options of every command that reads images."""

    data: str | None = data_option(
        None, "folder with train/ and val/, or .beton file; with --dataset: where it lies, or where to download it to"
    )
    dataset: str = data_option(
        "folder", f"{', '.join(DATASETS)}, hf:NAME[:SPLIT] (of the Hugging Face hub, or a folder of parquet files or"
        " WebDataset tars), or your own module:factory",
        type=known_or_outside("--dataset", DATASETS), metavar="NAME",
    )  # fmt: skip
    dataset_arg: list[str] = data_option(
        [],
        "argument of a data set of your own, or image=COLUMN, label=COLUMN of hf:NAME; may be repeated",
        action="append",
        metavar="NAME=VALUE",
    )
    image_size: int | None = data_option(
        None, "side of the square crops in pixels; default: the checkpoint's, else the usual one of the data set"
    )
    channels: int | None = data_option(
        None, "channels of the images, such as 1 for grey; default: the checkpoint's, else 3"
    )
    not_rgb: bool = data_option(
        False, "the three channels are not colours: no hue, saturation or grey; default: the checkpoint's"
    )
    value_range: str | None = data_option(
        None, "values of more than 8 bits that become black and white; --value-range=-5,9 if LOW is negative;"
        " default: each file's own",
        metavar="LOW,HIGH",
    )  # fmt: skip
    mean: str | None = data_option(
        None, "mean of each channel, of values from 0 to 1; default: the recipe's", metavar="M,M,..."
    )
    std: str | None = data_option(None, "standard deviation of each channel; default: the recipe's", metavar="S,S,...")
    skip_bad_images: bool = data_option(False, "skip images that cannot be read, and count them")
    workers: int | None = running(
        None, "decoding threads on a node; default and maximum: the CPUs that the node's ranks may use", "-j"
    )
    loader: str = running("auto", "read only in this way; auto: by the kind of data", choices=LOADERS)
    cache: str = running(
        "os", "pages of a .beton file: ram: all in memory; os: as the system does; none: freed after use",
        choices=CACHES,
    )  # fmt: skip
    device: str = running("auto", "where to compute; auto: cuda if there is one", choices=("auto", "cuda", "cpu"))

    def open(self, split: str, labels_required: bool = True) -> Source:
        """Opens the source of 'train' or 'val'. InputError as `open_split`."""
        return open_split(
            self.data,
            self.dataset,
            split,
            loader=self.loader,
            cache=self.cache,
            labels_required=labels_required,
            arguments=self.dataset_arg,
            pixels=self.pixel_format,
        )

    @property
    def pixel_format(self) -> PixelFormat:
        """Returns the format into which every image is converted."""
        return pixel_format(self.channels, self.value_range)

    def find_recipe(self, name: str, crop_min: float | None = None) -> Recipe:
        """Returns the augmentations `name` for these channels.

        They use the channels' mean and standard deviation. InputError as `find_recipe`.
        """
        channels = self.pixel_format.channels
        return find_recipe(name, crop_min, channels, *statistics(channels, self.mean, self.std), rgb=not self.not_rgb)

    def has(self, split: str) -> bool:
        """Returns True if the data has this split."""
        return has_split(self.data, self.dataset, split, self.dataset_arg)


def check_data(o: DataOptions) -> None:
    """Raises InputError if the options name no images."""
    if o.dataset in ("folder", "imagenet100", "nyu-depth") and o.data is None:
        raise InputError(
            "say where the images are: a folder with train/ and val/, or --dataset digits for the embedded data"
        )
    pixel_format(o.channels, o.value_range)
    if o.not_rgb and o.channels not in (None, 3):
        raise InputError(f"--not-rgb is about three channels: with --channels {o.channels} leave it out")
    statistics(o.channels, o.mean, o.std)
    check_unused("--dataset", o.dataset, o.dataset_arg)
    if is_hub(o.dataset):
        check_hub(o.dataset, o.data, o.dataset_arg)
    elif is_outside(o.dataset):
        find("--dataset", o.dataset, o.dataset_arg, "train", o.data)
    at_least(o, 1, "workers", "image_size")


@dataclass(frozen=True)
class RunOptions:
    """Holds the options of every command that makes a run's folder."""

    seed: int | None = training_option(None, "seed of everything random; default: drawn at the start, and saved")
    deterministic: bool = training_option(
        False, "only deterministic kernels, which are slower on a GPU: a resumed run is bit-identical"
    )
    print_freq: int = running(10, "steps between two log lines", "-p")
    output_dir: str = running("", "folder of all that the run writes; default: a name under runs/", metavar="FOLDER")
    config: str | None = running(
        None, "YAML file with lines of the form option: value; flags override them", metavar="FILE"
    )
    dry_run: bool = running(False, "print the resolved options and stop")


@dataclass(frozen=True)
class SavingOptions(RunOptions):
    """Holds the options of main_moco.py and moco.sentences.train."""

    resume: str | None = running(
        None,
        "checkpoint to go on from; auto: the newest good one in --output-dir, if there is one",
        metavar="FILE|auto",
    )
    save_freq: int = running(1, "epochs between two checkpoints; the last epoch is always saved")
    save_every: str | None = running(
        None, "save inside epochs too: each so many steps (500) or minutes (30m)", metavar="STEPS|MINUTESm"
    )
    keep_last: int = running(0, "checkpoints to keep; 0: every epoch's, and the last two of those inside epochs")
    keep_every: int = running(0, "with --keep-last: keep also each so many epochs' checkpoint")
    rank_timeout: float = running(1800.0, "seconds without an answer from a rank after which the run ends")
    tensorboard: bool = running(True, "write TensorBoard files; default: yes", action=argparse.BooleanOptionalAction)
    wandb: str | None = running(None, "log to this Weights & Biases project too", metavar="PROJECT")


@dataclass(frozen=True)
class CommonOptions(RunOptions, DataOptions):
    """Holds the options of the mains and of moco.probe.depth."""


def check_common(o: Any) -> None:
    """Raises InputError for a bad value of the mains' common options."""
    check_data(o)
    at_least(o, 1, "epochs", "batch_size", "print_freq")
    at_least(o, 0, "start_epoch", "momentum", "weight_decay")
    positive(o, "lr")
    check_seed(o.seed)
    if o.start_epoch >= o.epochs:
        raise InputError(f"--start-epoch {o.start_epoch} is past the last of {o.epochs} epochs; raise --epochs")
    check_schedule(o.schedule)


def check_saving(o: SavingOptions) -> None:
    """Raises InputError for a bad value of `SavingOptions`."""
    at_least(o, 1, "save_freq")
    at_least(o, 0, "keep_last", "keep_every")
    positive(o, "rank_timeout")
    Every(o.save_every)


def check_schedule(schedule: list[int]) -> None:
    if any(not 0 <= epoch < MOST for epoch in schedule):
        raise InputError(f"--schedule takes epochs from 0 on, not {' '.join(map(str, schedule))}")


def check_seed(seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"--seed must be at least 0 and less than 2^63, not {seed}")


def check_unread(typed: set[str], unread: Mapping[str, str]) -> None:
    """Raises InputError if an option was typed that has no effect.

    unread: option -> the setting that leaves it out, such as '--loss infonce'. From a --config file it is accepted,
    because one file may serve several runs.
    """
    for name in sorted(typed & unread.keys()):
        raise InputError(f"{flag(name)} is not read with {unread[name]}; leave it out")


def unread_saves(o: SavingOptions) -> dict[str, str]:
    """Returns saving options without effect, for `check_unread`."""
    return {} if o.keep_last else {"keep_every": "--keep-last 0, which keeps every epoch's checkpoint"}


MOST = 2**31  # limit of counts and sizes; no run comes near it


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def at_least(o: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(o, name)
        if value is not None and not value >= least:
            raise InputError(f"{flag(name)} must be at least {least:g}, not {_shown(value)}")
        if value is not None and not value < MOST:
            raise InputError(f"{flag(name)} must be below 2^31, not {_shown(value)}")


def positive(o: Any, *names: str) -> None:
    for name in names:
        for value in values_of(getattr(o, name)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"{flag(name)} must be greater than 0, not {value:g}")


def result_options(options: type) -> list[str]:
    """Returns the names of the options that change results."""
    return [f.name for f in dataclasses.fields(options) if f.metadata["group"] == RESULTS]


def as_dict(o: Any) -> dict[str, Any]:
    return dataclasses.asdict(o)


def as_json(o: Any) -> str:
    return json.dumps(as_dict(o), indent=2)
