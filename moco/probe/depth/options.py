"""Defines the options of moco.probe.depth.

Those that it shares with main_lincls.py have the same names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from moco.data.augment.recipes import RECIPES
from moco.encoders import check_arch
from moco.errors import InputError
from moco.probe.options import check_betas
from moco.run import flags
from moco.run.options import (
    CommonOptions,
    at_least,
    check_data,
    check_schedule,
    check_seed,
    check_unread,
    evaluation,
    positive,
    result,
    running,
)


@dataclass(frozen=True)
class DepthOptions(CommonOptions):
    """Holds the options of moco.probe.depth; the defaults are Wang & Isola's."""

    dataset: str = dataclasses.field(
        default="nyu-depth", metadata=CommonOptions.__dataclass_fields__["dataset"].metadata
    )
    arch: str | None = result(None, "encoder; default: the checkpoint's, else smallalexnet", "-a", metavar="NAME")
    arch_arg: list[str] = result(
        [], "argument of an encoder of your own; default: the checkpoint's", action="append", metavar="NAME=VALUE"
    )
    pretrained: str | None = result(
        None, "checkpoint of the encoder; without it the encoder is untrained", metavar="FILE"
    )
    features_from: str = result("conv5", "layer to read: conv4, conv5, layer3, ...", metavar="LAYER")
    epochs: int = result(120, "epochs to train")
    batch_size: int = result(128, "images in a step", "-b")
    lr: float = result(0.003, "learning rate of Adam at the start", "--learning-rate")
    schedule: list[int] = result([70, 90, 100, 110], "epochs at which the learning rate drops", nargs="*")
    lr_drop: float = result(0.2, "factor of the learning rate at each epoch of --schedule")
    adam_betas: list[float] = result([0.5, 0.999], "the two decay rates of Adam's means", nargs="*")
    recipe: str | None = result(
        None, "augmentations of the pretraining, of which the flips and the normalisation are used; default: the"
        " checkpoint's or data set's",
        choices=tuple(RECIPES),
    )  # fmt: skip
    evaluate: bool = evaluation(False, "only measure the predictor of --resume on the validation images", "-e")
    resume: str | None = running(
        None, "checkpoint of the predictor to go on from; auto: the one in --output-dir", metavar="FILE|auto"
    )


_UNREAD = ("epochs", "batch_size", "lr", "schedule", "lr_drop", "adam_betas", "features_from", "pretrained")


def parse_depth(argv: list[str] | None = None) -> DepthOptions:
    """Parses and checks the options of moco.probe.depth.

    `arch`, `image_size`, `recipe` and `output_dir` may be open: the checkpoint decides then.
    """
    o = flags.parse(DepthOptions, "Depth predicted from a frozen encoder's layer.", argv)
    check_data(o)
    check_seed(o.seed)
    if o.arch is not None:
        check_arch(o.arch, o.arch_arg)
    at_least(o, 1, "epochs", "batch_size", "print_freq")
    positive(o, "lr", "lr_drop")
    if o.lr_drop > 1:
        raise InputError(f"--lr-drop must be at most 1, not {o.lr_drop:g}")
    check_schedule(o.schedule)
    check_betas(o.adam_betas)
    if o.evaluate:
        check_unread(flags.typed(DepthOptions, argv), dict.fromkeys(_UNREAD, "--evaluate"))
    return o
