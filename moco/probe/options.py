"""Defines the options of main_lincls.py.

Options of facebookresearch/moco keep their names, defaults and meanings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from moco.data.augment.recipes import RECIPES
from moco.encoders import check_arch
from moco.errors import InputError, flag
from moco.run import flags
from moco.run.options import (
    CommonOptions,
    at_least,
    augmentation_option,
    check_common,
    check_unread,
    encoder_option,
    evaluation,
    positive,
    result,
    running,
    training_option,
)

# MoCo's learning rate is for frozen features; an encoder trained with it diverges
_LR = 30.0

protocol_option = partial(result, topic="protocol")


@dataclass(frozen=True)
class LinclsOptions(CommonOptions):
    """Holds the options of main_lincls.py."""

    arch: str | None = encoder_option(None, "encoder; default: the checkpoint's, else resnet50", "-a", metavar="NAME")
    arch_arg: list[str] = encoder_option(
        [], "argument of an encoder of your own; default: the checkpoint's", action="append", metavar="NAME=VALUE"
    )
    pretrained: str | None = encoder_option(
        None, "checkpoint of the encoder; without it the encoder is untrained", metavar="FILE"
    )
    features_from: str = encoder_option(
        "trunk", "features to classify: trunk, output (of the projection head) or the name of a layer",
        metavar="WHICH",
    )  # fmt: skip
    recipe: str | None = augmentation_option(
        None, "augmentations of the pretraining, of which the flips and the normalisation are used; default: the"
        " checkpoint's or data set's",
        choices=tuple(RECIPES),
    )  # fmt: skip
    epochs: int = training_option(100, "epochs to train")
    start_epoch: int = training_option(0, "number of the first epoch")
    batch_size: int = training_option(256, "images in a step, over all ranks", "-b")
    optimizer: str = training_option("sgd", "optimiser", choices=("sgd", "adam"))
    lr: float = training_option(
        _LR, "learning rate for 256 images; scaled by batch/256 for another --batch-size", "--learning-rate"
    )
    schedule: list[int] = training_option([60, 80], "epochs at which the learning rate drops", nargs="*")
    lr_drop: float = training_option(0.1, "factor of the learning rate at each epoch of --schedule")
    momentum: float = training_option(0.9, "momentum of SGD")
    adam_betas: list[float] = training_option([0.9, 0.999], "the two decay rates of Adam's means", nargs="*")
    weight_decay: float = training_option(0.0, "weight decay", "--wd")
    train_fraction: float = training_option(1.0, "share of each class's training images to use, such as 0.01")
    sweep: bool = protocol_option(
        False, "train many classifiers at once and choose the best on held-out training images"
    )
    sweep_lrs: list[float] = protocol_option(
        [0.03, 0.1, 0.3, 1, 3, 10, 30, 100], "with --sweep: learning rates for 256 images", nargs="*"
    )
    sweep_wds: list[float] = protocol_option(
        [0, 1e-6, 1e-4], "with --sweep: weight decays, each with each learning rate", nargs="*"
    )
    held_out: float = protocol_option(0.1, "with --sweep: share of the training images to choose by")
    cached: bool = protocol_option(
        False, "compute features once, without augmentation, and solve logistic regression; with --sweep: train it by"
        " SGD",
    )  # fmt: skip
    folds: int = protocol_option(5, "with --cached: parts of the cross-validation")
    finetune: bool = protocol_option(False, "train the encoder of --pretrained too")
    trunk_lr: float = protocol_option(0.01, "with --finetune: learning rate of the trunk for 256 images")
    head_lr: float = protocol_option(0.2, "with --finetune: learning rate of the classifier for 256 images")
    evaluate: bool = evaluation(False, "only measure the classifier of --resume on the validation images", "-e")
    resume: str | None = running(
        None, "checkpoint of the linear classifier to go on from; auto: the one in --output-dir", metavar="FILE|auto"
    )

    @property
    def solved(self) -> bool:
        """Returns True if logistic regression is solved without epochs."""
        return self.cached and not self.sweep


def _unread(o: LinclsOptions) -> dict[str, str]:
    """Returns options without effect: option -> the setting that causes it."""
    unread: dict[str, str] = {}
    if not o.finetune:
        unread |= dict.fromkeys(("trunk_lr", "head_lr"), "frozen features, without --finetune")
    if not o.sweep:
        unread |= dict.fromkeys(("sweep_lrs", "sweep_wds", "held_out"), "one classifier, without --sweep")
    else:
        unread |= dict.fromkeys(("lr", "weight_decay"), "--sweep, which has --sweep-lrs and --sweep-wds")
    if o.optimizer == "adam":
        unread["momentum"] = "--optimizer adam"
    else:
        unread["adam_betas"] = f"--optimizer {o.optimizer}"
    if not o.solved:
        unread["folds"] = "a classifier that is trained by epochs, without --cached"
    elif not o.evaluate:
        trained = ("lr", "momentum", "weight_decay", "optimizer", "schedule", "lr_drop", "epochs")
        unread |= dict.fromkeys(trained, "--cached without --sweep, which solves for the optimum")
    return unread


def check_betas(betas: list[float]) -> None:
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        given = " ".join(f"{beta:g}" for beta in betas)
        raise InputError(f"--adam-betas takes two numbers from 0 to below 1, such as 0.9 0.999, not {given or 'none'}")


def parse_lincls(argv: list[str] | None = None) -> LinclsOptions:
    """Parses and checks the options of main_lincls.py.

    `arch`, `image_size` and `output_dir` may be open: the checkpoint decides then.
    """
    o = flags.parse(LinclsOptions, "Linear classification on frozen features.", argv)
    check_common(o)
    if o.arch is not None:
        check_arch(o.arch, o.arch_arg)
    positive(o, "train_fraction", "held_out", "lr_drop", "trunk_lr", "head_lr")
    at_least(o, 2, "folds")
    check_betas(o.adam_betas)
    for name, most in (("train_fraction", 1.0), ("held_out", 0.5), ("lr_drop", 1.0)):
        if getattr(o, name) > most:
            raise InputError(f"{flag(name)} must be at most {most:g}, not {getattr(o, name):g}")
    if o.finetune and (o.sweep or o.cached or o.features_from != "trunk"):
        raise InputError("--finetune trains one classifier on the trunk: leave out --sweep, --cached, --features-from")
    if o.finetune and o.lr != _LR:
        raise InputError("--finetune has two learning rates, --trunk-lr and --head-lr: pass those and leave out --lr")
    fine = all(0 < lr < math.inf for lr in o.sweep_lrs) and all(0 <= wd < math.inf for wd in o.sweep_wds)
    if o.sweep and not (o.sweep_lrs and o.sweep_wds and fine):
        raise InputError("--sweep needs --sweep-lrs above 0 and --sweep-wds of at least 0: give one of each or more")
    check_unread(flags.typed(LinclsOptions, argv), _unread(o))
    return o
