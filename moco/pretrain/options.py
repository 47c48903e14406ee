"""Defines the options of main_moco.py.

Each has flag, default, meaning, and whether it changes the results. A field of the dataclass is the option; the parser
is made from the fields. Names, defaults and meanings are facebookresearch/moco's and, for the loss, those of its
align/uniform fork. Others are marked "(new)".
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from dataclasses import dataclass

from moco.builder import KEYS, choose_bn
from moco.data.augment.recipes import RECIPES
from moco.data.crops import crops_text, multi_crop
from moco.data.datasets import defaults_of
from moco.encoders.batchnorm import BN_MODES
from moco.errors import InputError
from moco.losses import PRESET_WEIGHTS
from moco.losses.in_batch import CONTRASTIVE
from moco.losses.table import LOSSES
from moco.plugins import known_or_outside
from moco.pretrain.checks import check
from moco.pretrain.optimiser import OPTIMIZERS
from moco.run import flags
from moco.run.options import CommonOptions, evaluation, result, running
from moco.schedules import number_or_curve
from moco.world import World

PREDICTORS = ("resnet", "vit")


@dataclass(frozen=True)
class PretrainOptions(CommonOptions):
    """Holds the options of main_moco.py."""

    arch: str = result(
        "resnet50", "encoder: a torchvision name, timm:NAME, resnet18_small, smallalexnet, smallcnn, vit_small, or your"
        " own module:factory", "-a",
    )  # fmt: skip
    arch_arg: list[str] = result(
        [], "argument of an encoder of your own; may be repeated (new)", action="append", metavar="NAME=VALUE"
    )
    init_from: str | None = result(
        None, "start from this checkpoint's encoder with a new projection head; layouts as for --pretrained (new)"
    )
    init_std: float | None = result(
        None, "weights of all convolutions and linear layers start as N(0, this), biases at 0; default: the network's"
        " own start (new)",
    )  # fmt: skip
    epochs: int = result(200, "epochs to train")
    start_epoch: int = result(0, "epoch to start counting at")
    batch_size: int = result(256, "images per step, over all ranks", "-b")
    no_drop_last: bool = result(False, "train on the short batch at the end of an epoch too (new)")
    optimizer: str = result("sgd", "optimiser (new)", choices=tuple(OPTIMIZERS))
    lr: float = result(0.03, "learning rate at the start, for the batch size given", "--learning-rate")
    schedule: list[int] = result([120, 160], "epochs at which the learning rate drops tenfold", nargs="*")
    cos: bool = result(False, "cosine schedule instead")
    warmup_epochs: int = result(0, "epochs of linear warm-up (new)")
    lr_per_step: bool = result(
        False, "warm-up and cosine by step, not by epoch: from 0 to --lr, then down to 0 at the end (new)"
    )
    momentum: float = result(0.9, "momentum of SGD and LARS")
    weight_decay: float = result(1e-4, "weight decay", "--wd")
    grad_clip: float | None = result(None, "largest gradient norm (new)")
    accum_steps: int = result(1, "parts a batch is split into, one after the other, to save memory (new)")
    amp: str = result("off", "automatic mixed precision of the encoders (new)", choices=("off", "bf16", "fp16"))
    max_bad_steps: int = result(0, "steps whose gradient is not finite to leave out before giving up (new)")
    moco_dim: int = result(128, "feature dimension")
    keys: str = result(
        "queue", "where negative keys come from: the queue, or the key encoder's keys of the batch (MoCo v3) (new)",
        choices=KEYS,
    )  # fmt: skip
    moco_k: int = result(65536, "queue length: number of negative keys; 0: no queue, the batch itself (SimCLR)")
    moco_m: float | str = result(0.999, "momentum of the key encoder, or a curve as for --moco-t", type=number_or_curve)
    moco_m_cos: bool = result(
        False, "key momentum by step: a half cosine from --moco-m to 1, or between the points of its curve (new)"
    )
    moco_t: float | str | None = result(
        None, "temperature; a curve over epochs: 0:0.5,100:0.07; default: 0.07, dcl and dclw 0.1, debiased"
        " and hcl 0.5",
        "--moco-contr-tau", type=number_or_curve,
    )  # fmt: skip
    mlp: bool = result(False, "MLP projection head (MoCo v2)")
    moco_mlp_layers: int | None = result(
        None, "linear layers of the projection head, with ReLU between; default: 1, with --mlp 2 (new)"
    )
    moco_mlp_dim: int | None = result(
        None, "width between the layers of --moco-mlp-layers; default: that of the encoder's features (new)"
    )
    moco_mlp_bn: bool = result(
        False, "BatchNorm after each layer of --moco-mlp-layers in place of biases, as in MoCo v3 (new)"
    )
    predictor: str | None = result(
        None, "a predictor on the queries, of two layers, --moco-mlp-dim wide: MoCo v3's for ResNets, or for ViTs, with"
        " BatchNorm after the last layer too (new)", choices=PREDICTORS,
    )  # fmt: skip
    stop_grad_conv1: bool = result(False, "keep a ViT's projection of patches as it starts, as in MoCo v3 (new)")
    aug_plus: bool = result(False, "MoCo v2's augmentations")
    recipe: str | None = result(
        None, "augmentations by name; default: the data set's, or v1/v2 (new)", choices=tuple(RECIPES)
    )
    crop_min: float | None = result(
        None, "smallest share of an image's area that a crop takes; default: the augmentations' (new)"
    )
    crops: str | None = result(
        None, "multi-crop: two large and some small crops, as 2x224@.14-1+6x96@.05-.14 (count x pixels @ shares of the"
        " area); the small ones are queries alone (new)", type=crops_text,
    )  # fmt: skip
    loss: str | None = result(
        None, "infonce, align-uniform (they preset the three weights to 1/0/0 and 0/3/1), simple, hard, hard-simple,"
        " debiased, hcl, dcl, dclw, supcon, or your own module:Class (new; default infonce)",
        type=known_or_outside("--loss", tuple(LOSSES)), metavar="NAME",
    )  # fmt: skip
    loss_arg: list[str] = result(
        [],
        "argument of a loss of your own; may be repeated (new)",
        action="append",
        metavar="NAME=VALUE",
    )
    symmetric: bool = result(
        False, "both views as queries: mean of two losses, both views' keys are queued; --keys batch: their sum (new)"
    )
    queue_per_view: bool = result(
        False, "with --symmetric, a queue of --moco-k keys for each view, as in solo-learn, not one for both (new)"
    )
    moco_contr_w: float | None = result(None, "weight of the contrastive term")
    moco_align_w: float | None = result(None, "weight of the alignment term")
    moco_align_alpha: float = result(2.0, "exponent α of alignment")
    moco_unif_w: float | None = result(None, "weight of the uniformity term")
    moco_unif_t: float | str = result(3.0, "t of uniformity, or a curve as for --moco-t", type=number_or_curve)
    moco_unif_no_intra_batch: bool = result(False, "uniformity over queue pairs only, without pairs of the batch")
    in_batch: str = result(
        "simclr", "negatives of the contrastive term with --moco-k 0: both views', or the other view's alone (new)",
        choices=tuple(CONTRASTIVE),
    )  # fmt: skip
    unif_global: bool = result(False, "one uniformity over all ranks' queries, not the mean of each rank's (new)")
    moco_hard_alpha: float = result(0.0819, "share of the negatives that hard and hard-simple keep, the nearest (new)")
    moco_simple_w: float = result(1.0, "weight of the negatives' mean similarity in simple and hard-simple (new)")
    moco_tau_plus: float = result(0.1, "τ⁺ of debiased and hcl: share of negatives of the query's own class (new)")
    moco_beta: float = result(1.0, "β of hcl: how much hard negatives weigh (new)")
    bn: str | None = result(
        None, "BatchNorm isolation; default: shuffle on several ranks, split on one, local for --moco-k 0 (new)",
        choices=BN_MODES,
    )  # fmt: skip
    bn_group_size: int = result(32, "samples per virtual group of --bn split, consecutive ones (new)")

    compile: bool = result(False, "compile the encoders; where that fails, go on without (new)")
    reference_step: bool = result(False, "MoCo's algorithm the slow way, as its paper writes it: to compare (new)")

    eval_freq: int | None = evaluation(
        None, "epochs between two online evaluations, 0 for none; default 10 where there is a val split (new)"
    )
    knn_k: int = evaluation(200, "neighbours of the online kNN (new)")
    knn_t: float = evaluation(0.1, "temperature of the online kNN (new)")
    online_probe: bool = evaluation(
        False, "train a linear classifier beside the encoder, which it leaves as it is; logged with kNN (new)"
    )

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
    """Holds the options after `parse_pretrain`: these always have a value."""

    image_size: int
    channels: int
    recipe: str
    loss: str
    moco_t: float | str
    bn: str


def parse_pretrain(argv: list[str] | None = None, world_size: int | None = None) -> ResolvedPretrainOptions:
    """Parses, checks and resolves the options of main_moco.py.

    world_size: the number of ranks that will train; default: of this process's start.
    """
    world_size = World.launched().size if world_size is None else world_size
    o = flags.parse(PretrainOptions, "Momentum-contrast pretraining.", argv)
    size, recipe = defaults_of(o.dataset)
    large = multi_crop(o.crops) if o.crops else None
    given = (o.moco_contr_w, o.moco_align_w, o.moco_unif_w)
    # weights without --loss are of the fork's commands, with defaults 0/3/1
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
        channels=3 if o.channels is None else o.channels,
        image_size=large.size if large else size if o.image_size is None else o.image_size,
        crop_min=large.scale[0] if large else o.crop_min,
        recipe=o.recipe or ("v2" if o.aug_plus else recipe),
        loss=loss,
        moco_t=_temperature(loss) if o.moco_t is None else o.moco_t,
        moco_contr_w=weights[0],
        moco_align_w=weights[1],
        moco_unif_w=weights[2],
        bn=choose_bn(o.bn, o.moco_k, world_size, o.keys),
        moco_k=0 if o.keys == "batch" else o.moco_k,
        output_dir=o.output_dir or os.path.join("runs", re.sub("[:/]", "-", f"{o.dataset}-{o.arch}-{loss}")),
    )
    if resolved.channels != 3 and resolved.mean is None:
        of_channels = resolved.find_recipe(resolved.recipe)
        mean, std = (",".join(f"{value:g}" for value in values) for values in (of_channels.mean, of_channels.std))
        resolved = dataclasses.replace(resolved, mean=mean, std=std)
    check(resolved, flags.typed(PretrainOptions, argv), o.bn, world_size)
    return resolved


def _temperature(loss: str) -> float:
    return LOSSES[loss].temperature if loss in LOSSES else 0.07
