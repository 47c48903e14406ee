"""Defines the options of main_lincls.py.

Names, defaults and meanings are those of facebookresearch/moco; options that it lacks are marked "(new)".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moco.data.augment.recipes import RECIPES
from moco.encoders import check_arch
from moco.errors import InputError, flag
from moco.run import flags
from moco.run.options import CommonOptions, at_least, check_common, check_unread, evaluation, positive, result, running

# MoCo's learning rate is for frozen features; an encoder trained with it diverges
_LR = 30.0


@dataclass(frozen=True)
class LinclsOptions(CommonOptions):
    """Holds the options of main_lincls.py."""

    arch: str | None = result(None, "encoder; default: the checkpoint's, else resnet50", "-a")
    arch_arg: list[str] = result(
        [], "argument of an encoder of your own; default: the checkpoint's (new)", action="append", metavar="NAME=VALUE"
    )
    pretrained: str | None = result(None, "checkpoint of the encoder; without it the encoder is untrained")
    features_from: str = result(
        "trunk", "what is classified: trunk, output (the projection head's) or the name of a layer (new)",
        metavar="WHICH",
    )  # fmt: skip
    epochs: int = result(100, "epochs to train")
    start_epoch: int = result(0, "epoch to start counting at")
    batch_size: int = result(256, "images per step, over all ranks", "-b")
    optimizer: str = result("sgd", "optimiser (new)", choices=("sgd", "adam"))
    lr: float = result(
        _LR, "learning rate per 256 images: another --batch-size scales it by batch/256", "--learning-rate"
    )
    schedule: list[int] = result([60, 80], "epochs at which the learning rate drops", nargs="*")
    lr_drop: float = result(0.1, "factor of the learning rate at each epoch of --schedule (new)")
    momentum: float = result(0.9, "momentum of SGD")
    adam_betas: list[float] = result([0.9, 0.999], "the two decay rates of Adam's means (new)", nargs="*")
    weight_decay: float = result(0.0, "weight decay", "--wd")
    recipe: str | None = result(
        None, "that of the pretraining: for flips and normalisation; default: the checkpoint's or data set's (new)",
        choices=tuple(RECIPES),
    )  # fmt: skip
    train_fraction: float = result(1.0, "share of each class's training images to use, as in 0.01 (new)")
    sweep: bool = result(False, "many classifiers at once; the best on held-out training images is the result (new)")
    sweep_lrs: list[float] = result(
        [0.03, 0.1, 0.3, 1, 3, 10, 30, 100], "their learning rates per 256 images (new)", nargs="*"
    )
    sweep_wds: list[float] = result([0, 1e-6, 1e-4], "with each of these weight decays (new)", nargs="*")
    held_out: float = result(0.1, "share of the training images to choose by (new)")
    cached: bool = result(
        False, "no augmentation, features computed once: logistic regression, or with --sweep its SGD (new)"
    )
    folds: int = result(5, "parts of the cross-validation of --cached (new)")
    finetune: bool = result(False, "train the encoder too, from --pretrained (new)")
    trunk_lr: float = result(0.01, "with --finetune: learning rate of the trunk per 256 images (new)")
    head_lr: float = result(0.2, "with --finetune: learning rate of the classifier per 256 images (new)")
    evaluate: bool = evaluation(False, "only measure the classifier of --resume on the validation data", "-e")
    resume: str | None = running(None, "checkpoint of the linear classifier to go on from")

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
