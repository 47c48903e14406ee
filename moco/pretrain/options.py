"""Defines the options of main_moco.py.

Each field of the dataclass is an option; the parser is made from the fields.
The heading in --help says whether an option changes the results.
Options of facebookresearch/moco, and of its align/uniform fork for the loss, keep their names, defaults and meanings.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from dataclasses import dataclass
from functools import partial

from moco.builder import KEYS, choose_bn
from moco.data.augment.recipes import RECIPES
from moco.data.crops import MultiCrop, crops_text, multi_crop
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
from moco.run.options import (
    CommonOptions,
    SavingOptions,
    augmentation_option,
    encoder_option,
    evaluation,
    result,
    running,
    training_option,
)
from moco.schedules import number_or_curve
from moco.world import World

PREDICTORS = ("resnet", "vit")

contrast_option = partial(result, topic="keys, queue and temperature")
loss_option = partial(result, topic="loss")


@dataclass(frozen=True)
class PretrainOptions(SavingOptions, CommonOptions):
    """Holds the options of main_moco.py."""

    arch: str = encoder_option(
        "resnet50", "a torchvision name, timm:NAME, resnet18_small, smallalexnet, smallcnn, vit_small, or your own"
        " module:factory", "-a", metavar="NAME",
    )  # fmt: skip
    arch_arg: list[str] = encoder_option(
        [], "argument of an encoder of your own; may be repeated", action="append", metavar="NAME=VALUE"
    )
    mlp: bool = encoder_option(False, "MLP projection head (MoCo v2)")
    moco_dim: int = encoder_option(128, "dimension of the output features")
    moco_mlp_layers: int | None = encoder_option(
        None, "linear layers of the projection head, with ReLU between them; default: 1, or 2 with --mlp"
    )
    moco_mlp_dim: int | None = encoder_option(
        None, "width of the hidden layers of projection head and predictor; default: that of the encoder's features"
    )
    moco_mlp_bn: bool = encoder_option(
        False, "with --moco-mlp-layers: BatchNorm after each layer and no biases, as in MoCo v3"
    )
    predictor: str | None = encoder_option(
        None, "MoCo v3's two-layer predictor on the queries, --moco-mlp-dim wide; vit: BatchNorm after its last layer"
        " too; default: none", choices=PREDICTORS,
    )  # fmt: skip
    stop_grad_conv1: bool = encoder_option(False, "do not train a ViT's patch projection, as in MoCo v3")
    init_from: str | None = encoder_option(
        None, "start from this checkpoint's encoder, with a new projection head; layouts as for --pretrained",
        metavar="FILE",
    )  # fmt: skip
    init_std: float | None = encoder_option(
        None, "initial weights of all convolutions and linear layers are N(0, X²), their biases 0; default: the"
        " encoder's own initialisation",
    )  # fmt: skip

    keys: str = contrast_option(
        "queue", "where negative keys come from: the queue, or the keys of the whole batch, as in MoCo v3",
        choices=KEYS,
    )  # fmt: skip
    moco_k: int = contrast_option(65536, "queue length: number of negative keys; 0: no queue, as SimCLR")
    moco_m: float | str = contrast_option(
        0.999, "momentum of the key encoder, or a curve as for --moco-t", type=number_or_curve, metavar="X|CURVE"
    )
    moco_m_cos: bool = contrast_option(
        False, "change the key momentum by step, along a half cosine from --moco-m to 1 or between its curve's points"
        "",
    )  # fmt: skip
    moco_t: float | str | None = contrast_option(
        None, "temperature, or a curve over epochs such as 0:0.5,100:0.07; default: 0.07; dcl, dclw 0.1; debiased, hcl"
        " 0.5",
        "--moco-contr-tau", type=number_or_curve, metavar="X|CURVE",
    )  # fmt: skip
    symmetric: bool = contrast_option(
        False, "both views are queries: mean of two losses, and both views' keys are queued; with --keys batch: their"
        " sum",
    )  # fmt: skip
    queue_per_view: bool = contrast_option(
        False, "with --symmetric: one queue of --moco-k keys for each view, as in solo-learn"
    )
    bn: str | None = contrast_option(
        None, "how BatchNorm keeps a query's batch from its key's; default: shuffle on several ranks, split on one,"
        " local without a queue", choices=BN_MODES,
    )  # fmt: skip
    bn_group_size: int = contrast_option(32, "images in each group of --bn split")

    loss: str | None = loss_option(
        None, "infonce, align-uniform, simple, hard, hard-simple, debiased, hcl, dcl, dclw, supcon, or your own"
        " module:Class; default: infonce",
        type=known_or_outside("--loss", tuple(LOSSES)), metavar="NAME",
    )  # fmt: skip
    loss_arg: list[str] = loss_option(
        [], "argument of a loss of your own; may be repeated", action="append", metavar="NAME=VALUE"
    )
    moco_contr_w: float | None = loss_option(
        None, "weight of the contrastive term; default: infonce 1, align-uniform 0"
    )
    moco_align_w: float | None = loss_option(None, "weight of the alignment term; default: infonce 0, align-uniform 3")
    moco_align_alpha: float = loss_option(2.0, "exponent α of alignment")
    moco_unif_w: float | None = loss_option(None, "weight of the uniformity term; default: infonce 0, align-uniform 1")
    moco_unif_t: float | str = loss_option(
        3.0, "t of uniformity, or a curve as for --moco-t", type=number_or_curve, metavar="X|CURVE"
    )
    moco_unif_no_intra_batch: bool = loss_option(
        False, "uniformity over pairs of a query and a queue entry, without pairs of two queries"
    )
    unif_global: bool = loss_option(
        False, "one uniformity over the queries of all ranks, in place of the mean over ranks"
    )
    in_batch: str = loss_option(
        "simclr", "with --moco-k 0, negatives of the contrastive term: both views', or only the other view's",
        choices=tuple(CONTRASTIVE),
    )  # fmt: skip
    moco_hard_alpha: float = loss_option(
        0.0819, "hard, hard-simple: share of the negatives that is kept, the nearest ones"
    )
    moco_simple_w: float = loss_option(1.0, "simple, hard-simple: weight of the negatives' mean similarity")
    moco_tau_plus: float = loss_option(0.1, "τ⁺ of debiased and hcl: share of negatives that have the query's class")
    moco_beta: float = loss_option(1.0, "β of hcl: weight of hard negatives")

    aug_plus: bool = augmentation_option(False, "MoCo v2's augmentations")
    recipe: str | None = augmentation_option(
        None, "augmentations by name; default: the data set's, or v1, or v2 with --aug-plus",
        choices=tuple(RECIPES),
    )  # fmt: skip
    crop_min: float | None = augmentation_option(
        None, "smallest share of an image's area that a crop takes; default: the recipe's"
    )
    crops: str | None = augmentation_option(
        None, "multi-crop: two large and some small crops, such as 2x224@.14-1+6x96@.05-.14: number x pixels @ shares"
        " of the area; small crops are only queries", type=crops_text,
    )  # fmt: skip

    epochs: int = training_option(200, "epochs to train")
    start_epoch: int = training_option(0, "number of the first epoch")
    batch_size: int = training_option(256, "images in a step, over all ranks", "-b")
    no_drop_last: bool = training_option(False, "train on the last batch of an epoch even if it is short")
    optimizer: str = training_option("sgd", "optimiser", choices=tuple(OPTIMIZERS))
    lr: float = training_option(0.03, "learning rate at the start; not scaled by the batch size", "--learning-rate")
    schedule: list[int] = training_option([120, 160], "epochs at which the learning rate drops tenfold", nargs="*")
    cos: bool = training_option(False, "cosine learning rate in place of --schedule")
    warmup_epochs: int = training_option(0, "epochs in which the learning rate rises to --lr")
    lr_per_step: bool = training_option(False, "change the learning rate at each step, not at each epoch")
    momentum: float = training_option(0.9, "momentum of SGD and LARS")
    weight_decay: float = training_option(1e-4, "weight decay", "--wd")
    grad_clip: float | None = training_option(None, "largest gradient norm; default: no limit")
    accum_steps: int = training_option(1, "split each batch into so many parts, to save memory")
    amp: str = training_option("off", "automatic mixed precision of the encoders", choices=("off", "bf16", "fp16"))
    max_bad_steps: int = training_option(0, "steps without a finite gradient that may be skipped before the run ends")
    compile: bool = training_option(False, "compile the encoders; where that fails, go on without")
    reference_step: bool = training_option(False, "train by the paper's algorithm as it is written, slowly, to compare")

    eval_freq: int | None = evaluation(
        None, "epochs between two kNN evaluations, 0: none; default: 10 if there is a val split"
    )
    knn_k: int = evaluation(200, "neighbours of the kNN")
    knn_t: float = evaluation(0.1, "temperature of the kNN")
    online_probe: bool = evaluation(
        False, "also train a linear classifier on the features; the encoder gets no gradient from it"
    )

    channels_last: bool | None = running(
        None, "NHWC memory format; default: on a GPU", action=argparse.BooleanOptionalAction
    )
    profile: bool = running(False, "write a trace of a few steps, and a table of where their time goes")

    @property
    def multi_crop(self) -> MultiCrop | None:
        """Returns the crops of --crops; None without it."""
        return multi_crop(self.crops) if self.crops else None


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
    large = o.multi_crop
    given = (o.moco_contr_w, o.moco_align_w, o.moco_unif_w)
    # weights without --loss come from commands of the fork, whose defaults are 0, 3 and 1
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
    if (resolved.channels != 3 or resolved.not_rgb) and resolved.mean is None:
        of_channels = resolved.find_recipe(resolved.recipe)
        mean, std = (",".join(f"{value:g}" for value in values) for values in (of_channels.mean, of_channels.std))
        resolved = dataclasses.replace(resolved, mean=mean, std=std)
    check(resolved, flags.typed(PretrainOptions, argv), o.bn, world_size)
    return resolved


def _temperature(loss: str) -> float:
    return LOSSES[loss].temperature if loss in LOSSES else 0.07
