"""The options of main_moco.py: flag, default, meaning, whether it changes the results.

A field of the dataclass is the option; the parser is made from the fields. Names, defaults and meanings are
facebookresearch/moco's and, for the loss, those of its align/uniform fork; what neither has is marked "(new)".
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from dataclasses import dataclass

from moco.builder import choose_bn
from moco.data.augment.recipes import RECIPES
from moco.data.datasets import defaults_of
from moco.encoders import check_arch
from moco.encoders.batchnorm import BN_MODES
from moco.errors import InputError, flag
from moco.losses import PRESET_WEIGHTS
from moco.losses.table import LOSSES, check_loss
from moco.plugins import known_or_outside
from moco.pretrain.optimiser import OPTIMIZERS
from moco.run import flags
from moco.run.options import (
    CommonOptions,
    at_least,
    check_common,
    check_unread,
    evaluation,
    positive,
    result,
    running,
    unread_saves,
)
from moco.run.saver import Every
from moco.schedules import number_or_curve
from moco.world import World


@dataclass(frozen=True)
class PretrainOptions(CommonOptions):
    """Options of main_moco.py."""

    arch: str = result(
        "resnet50", "encoder: a torchvision name, timm:NAME, resnet18_small, smallalexnet, smallcnn, or your own"
        " module:factory", "-a",
    )  # fmt: skip
    arch_arg: list[str] = result(
        [], "argument of an encoder of your own; may be repeated (new)", action="append", metavar="NAME=VALUE"
    )
    init_from: str | None = result(
        None, "start from this checkpoint's encoder with a new projection head; layouts as for --pretrained (new)"
    )
    epochs: int = result(200, "epochs to train")
    start_epoch: int = result(0, "epoch to start counting at")
    batch_size: int = result(256, "images per step, over all ranks", "-b")
    optimizer: str = result("sgd", "optimiser (new)", choices=tuple(OPTIMIZERS))
    lr: float = result(0.03, "learning rate at the start, for the batch size given", "--learning-rate")
    schedule: list[int] = result([120, 160], "epochs at which the learning rate drops tenfold", nargs="*")
    cos: bool = result(False, "cosine schedule instead")
    warmup_epochs: int = result(0, "epochs of linear warm-up (new)")
    momentum: float = result(0.9, "momentum of SGD")
    weight_decay: float = result(1e-4, "weight decay", "--wd")
    grad_clip: float | None = result(None, "largest gradient norm (new)")
    accum_steps: int = result(1, "parts a batch is split into, one after the other, to save memory (new)")
    amp: str = result("off", "automatic mixed precision of the encoders (new)", choices=("off", "bf16", "fp16"))
    max_bad_steps: int = result(0, "steps whose gradient is not finite to leave out before giving up (new)")
    moco_dim: int = result(128, "feature dimension")
    moco_k: int = result(65536, "queue length: number of negative keys; 0: no queue, the batch itself (SimCLR)")
    moco_m: float = result(0.999, "momentum of the key encoder")
    moco_t: float | str | None = result(
        None, "temperature; a curve over epochs: 0:0.5,100:0.07; default: 0.07, debiased and hcl 0.5",
        "--moco-contr-tau", type=number_or_curve,
    )  # fmt: skip
    mlp: bool = result(False, "MLP projection head (MoCo v2)")
    aug_plus: bool = result(False, "MoCo v2's augmentations")
    recipe: str | None = result(
        None, "augmentations by name; default: the data set's, or v1/v2 (new)", choices=tuple(RECIPES)
    )
    loss: str | None = result(
        None, "infonce, align-uniform (they preset the three weights to 1/0/0 and 0/3/1), simple, hard, hard-simple,"
        " debiased, hcl, supcon, or your own module:Class (new; default infonce)",
        type=known_or_outside("--loss", tuple(LOSSES)), metavar="NAME",
    )  # fmt: skip
    loss_arg: list[str] = result(
        [],
        "argument of a loss of your own; may be repeated (new)",
        action="append",
        metavar="NAME=VALUE",
    )
    symmetric: bool = result(False, "both views as queries: mean of two losses, both views' keys are queued (new)")
    moco_contr_w: float | None = result(None, "weight of the contrastive term")
    moco_align_w: float | None = result(None, "weight of the alignment term")
    moco_align_alpha: float = result(2.0, "exponent α of alignment")
    moco_unif_w: float | None = result(None, "weight of the uniformity term")
    moco_unif_t: float | str = result(3.0, "t of uniformity, or a curve as for --moco-t", type=number_or_curve)
    moco_unif_no_intra_batch: bool = result(False, "uniformity over queue pairs only, without pairs of the batch")
    unif_global: bool = result(False, "one uniformity over all ranks' queries, not the mean of each rank's (new)")
    moco_hard_alpha: float = result(0.0819, "share of the negatives that hard and hard-simple keep, the nearest (new)")
    moco_simple_w: float = result(1.0, "weight of the negatives' mean similarity in simple and hard-simple (new)")
    moco_tau_plus: float = result(0.1, "τ⁺ of debiased and hcl: share of negatives of the query's own class (new)")
    moco_beta: float = result(1.0, "β of hcl: how much hard negatives weigh (new)")
    bn: str | None = result(
        None, "BatchNorm isolation; default: shuffle on several ranks, split on one, local for --moco-k 0 (new)",
        choices=BN_MODES,
    )  # fmt: skip
    bn_group_size: int = result(32, "samples per virtual group of --bn split (new)")

    compile: bool = result(False, "compile the encoders; where that fails, go on without (new)")
    reference_step: bool = result(False, "MoCo's algorithm the slow way, as its paper writes it: to compare (new)")

    eval_freq: int | None = evaluation(
        None, "epochs between two online evaluations, 0 for none; default 10 where there is a val split (new)"
    )
    knn_k: int = evaluation(200, "neighbours of the online kNN (new)")
    knn_t: float = evaluation(0.1, "temperature of the online kNN (new)")

    resume: str | None = running(None, "checkpoint to go on from; 'auto': the newest good one in --output-dir, if any")
    save_freq: int = running(1, "epochs between two checkpoints; the last epoch is always saved (new)")
    save_every: str | None = running(None, "save inside epochs too: after so many steps (500) or minutes (30m) (new)")
    keep_last: int = running(0, "checkpoints to keep; 0: those of all epochs, and the last two of all kinds (new)")
    keep_every: int = running(0, "with --keep-last, keep also those of every so many epochs (new)")
    rank_timeout: float = running(1800.0, "seconds after which a rank that does not answer ends the run (new)")
    channels_last: bool | None = running(
        None, "NHWC memory format; default: on a GPU (new)", action=argparse.BooleanOptionalAction
    )
    profile: bool = running(False, "write a trace and a table of where the time of a few steps goes (new)")
    tensorboard: bool = running(True, "write TensorBoard files (new)", action=argparse.BooleanOptionalAction)
    wandb: str | None = running(None, "log to this Weights & Biases project as well (new)", metavar="PROJECT")


class ResolvedPretrainOptions(PretrainOptions):
    """The same options after `parse_pretrain`: these have a value, whether or not it was typed."""

    image_size: int
    recipe: str
    loss: str
    moco_t: float | str
    bn: str


def parse_pretrain(argv: list[str] | None = None, world_size: int | None = None) -> ResolvedPretrainOptions:
    """The options of main_moco.py, checked and resolved.

    world_size: the number of ranks that will train; default: of this process's start.
    """
    world_size = World.launched().size if world_size is None else world_size
    o = flags.parse(PretrainOptions, "Momentum-contrast pretraining.", argv)
    size, recipe = defaults_of(o.dataset)
    given = (o.moco_contr_w, o.moco_align_w, o.moco_unif_w)
    # weights without --loss are a command of the fork, whose defaults are 0/3/1
    loss = o.loss or ("align-uniform" if any(w is not None for w in given) else "infonce")
    if loss not in PRESET_WEIGHTS and any(w is not None for w in given):
        raise InputError(
            f"--moco-contr-w, --moco-align-w and --moco-unif-w mix the terms of infonce and align-uniform, which --loss"
            f" {loss} does not have: leave them out"
        )
    presets = PRESET_WEIGHTS.get(loss, (None, None, None))
    weights = [preset if w is None else w for w, preset in zip(given, presets, strict=True)]
    resolved = dataclasses.replace(
        ResolvedPretrainOptions(**vars(o)),
        image_size=size if o.image_size is None else o.image_size,
        recipe=o.recipe or ("v2" if o.aug_plus else recipe),
        loss=loss,
        moco_t=_temperature(loss) if o.moco_t is None else o.moco_t,
        moco_contr_w=weights[0],
        moco_align_w=weights[1],
        moco_unif_w=weights[2],
        bn=choose_bn(o.bn, o.moco_k, world_size),
        output_dir=o.output_dir or os.path.join("runs", re.sub("[:/]", "-", f"{o.dataset}-{o.arch}-{loss}")),
    )
    check_common(resolved)
    at_least(resolved, 1, "moco_dim", "accum_steps", "save_freq", "knn_k", "bn_group_size")
    at_least(resolved, 0, "warmup_epochs", "moco_k", "moco_m", "eval_freq", "max_bad_steps", "keep_last", "keep_every")
    positive(resolved, "moco_t", "moco_align_alpha", "moco_unif_t", "grad_clip", "knn_t", "rank_timeout")
    if resolved.moco_m > 1:
        raise InputError(f"--moco-m must lie between 0 and 1, not {resolved.moco_m:g}")
    if resolved.batch_size < world_size * resolved.accum_steps:
        raise InputError(
            f"--batch-size {resolved.batch_size} leaves some of {world_size} ranks ×"
            f" {resolved.accum_steps} accumulation steps without an image; raise it"
        )
    check_loss(resolved)
    at_least(resolved, 0, "moco_tau_plus", "moco_beta")
    positive(resolved, "moco_hard_alpha", "moco_simple_w")
    for name in ("moco_tau_plus", "moco_hard_alpha"):
        if getattr(resolved, name) > 1:
            raise InputError(f"{flag(name)} is a share, at most 1, not {getattr(resolved, name):g}")
    check_unread(flags.typed(PretrainOptions, argv), _unread(resolved, o.bn))
    check_arch(resolved.arch, resolved.arch_arg)
    if not resolved.moco_k:
        _check_without_queue(resolved)
    Every(resolved.save_every)
    return resolved


def _unread(o: ResolvedPretrainOptions, bn: str | None) -> dict[str, str]:
    """Options that these settings leave without effect: option -> the setting. bn: --bn as it was typed."""
    of_losses = {name for row in LOSSES.values() for name in row.settings.values()}
    read_by_loss = set(LOSSES[o.loss].settings.values()) if o.loss in LOSSES else set()
    if o.loss not in PRESET_WEIGHTS:
        of_losses |= {"moco_unif_no_intra_batch", "unif_global"}
    unread = dict.fromkeys(of_losses - read_by_loss, f"--loss {o.loss}")
    if o.optimizer != "sgd":
        unread["momentum"] = f"--optimizer {o.optimizer}"
    if o.cos:
        unread["schedule"] = "--cos"
    if o.aug_plus and o.recipe != "v2":
        unread["aug_plus"] = f"--recipe {o.recipe}"
    if bn not in (None, "split"):  # the default depends on the number of ranks, a command should not
        unread["bn_group_size"] = f"--bn {bn}"
    if o.eval_freq == 0:
        unread |= dict.fromkeys(("knn_k", "knn_t"), "--eval-freq 0")
    return unread | unread_saves(o.keep_last)


def _temperature(loss: str) -> float:
    return LOSSES[loss].temperature if loss in LOSSES else 0.07


def _check_without_queue(o: PretrainOptions) -> None:
    if o.symmetric:
        raise InputError("--symmetric has no meaning with --moco-k 0, where both views are queries: leave it out")
    if o.accum_steps > 1:
        raise InputError(
            "--accum-steps would leave parts of a batch to compare with, and with --moco-k 0 the batch is all there is:"
            " lower --batch-size instead, or take a queue"
        )
    if o.batch_size < 2:
        raise InputError("--moco-k 0 compares the images of a batch: --batch-size must be at least 2")
