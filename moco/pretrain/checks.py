"""Checks the options of main_moco.py.

The checks find values out of range, settings that exclude each other, and options without effect. `o` is always a
`ResolvedPretrainOptions`. Each problem is an InputError of one sentence that names the flag.
"""

from __future__ import annotations

from typing import Any

from moco.encoders import check_arch
from moco.errors import InputError, flag
from moco.losses import PRESET_WEIGHTS
from moco.losses.table import LOSSES, check_loss
from moco.run.options import at_least, check_common, check_saving, check_unread, positive, unread_saves
from moco.schedules import values_of


def check(o: Any, typed: set[str], bn: str | None, world_size: int) -> None:
    """Raises InputError unless the options describe a run.

    typed: the options on the command line. bn: --bn as it was typed. world_size: the number of ranks.
    """
    check_common(o)
    check_saving(o)
    _check_ranges(o)
    if o.lr_per_step and not (o.cos or o.warmup_epochs):
        raise InputError("--lr-per-step works only with a warm-up or a cosine: pass --cos or --warmup-epochs too")
    if o.batch_size < world_size * o.accum_steps:
        raise InputError(
            f"--batch-size {o.batch_size} leaves some of {world_size} ranks ×"
            f" {o.accum_steps} accumulation steps without an image; raise it"
        )
    check_loss(o)
    at_least(o, 0, "moco_tau_plus", "moco_beta")
    positive(o, "moco_hard_alpha", "moco_simple_w")
    for name in ("moco_tau_plus", "moco_hard_alpha"):
        if getattr(o, name) > 1:
            raise InputError(f"{flag(name)} must be at most 1, not {getattr(o, name):g}")
    check_unread(typed, _unread(o, bn))
    check_arch(o.arch, o.arch_arg)
    if not o.moco_k:
        _check_without_queue(o, "--keys batch" if o.keys == "batch" else "--moco-k 0")
    elif o.queue_per_view and not o.symmetric:
        raise InputError("--queue-per-view needs --symmetric: without it only the keys of one view enter the queue")
    if o.online_probe and o.compile:
        raise InputError("--online-probe reads features inside the encoder, and --compile hides them: leave one out")


def _check_ranges(o: Any) -> None:
    at_least(o, 1, "moco_dim", "moco_mlp_layers", "moco_mlp_dim")
    at_least(o, 1, "accum_steps", "knn_k", "bn_group_size")
    at_least(o, 0, "warmup_epochs", "moco_k", "eval_freq", "max_bad_steps")
    positive(o, "moco_t", "moco_align_alpha", "moco_unif_t", "grad_clip", "knn_t")
    positive(o, "crop_min", "init_std")
    if o.crop_min is not None and o.crop_min > 1:
        raise InputError(f"--crop-min, a share of the image, must be at most 1, not {o.crop_min:g}")
    for m in values_of(o.moco_m):
        if not 0 <= m <= 1:
            raise InputError(f"--moco-m must be between 0 and 1, not {m:g}")


def _unread(o: Any, bn: str | None) -> dict[str, str]:
    """Returns options without effect: option -> the setting that causes it.

    bn: --bn as it was typed.
    """
    of_losses = {name for row in LOSSES.values() for name in row.settings.values()}
    read_by_loss = set(LOSSES[o.loss].settings.values()) if o.loss in LOSSES else set()
    if o.loss not in PRESET_WEIGHTS:
        of_losses |= {"moco_unif_no_intra_batch", "unif_global"}
    unread = dict.fromkeys(of_losses - read_by_loss, f"--loss {o.loss}")
    if o.optimizer == "adamw":
        unread["momentum"] = f"--optimizer {o.optimizer}"
    if o.keys == "batch":
        unread["moco_k"] = "--keys batch"
        unread["in_batch"] = "--keys batch"
    elif o.moco_k or o.loss not in PRESET_WEIGHTS:
        unread["in_batch"] = f"--moco-k {o.moco_k}" if o.moco_k else f"--loss {o.loss}"
    if o.crops:
        unread |= dict.fromkeys(("image_size", "crop_min"), "--crops")
    if o.cos:
        unread["schedule"] = "--cos"
    if o.aug_plus and o.recipe != "v2":
        unread["aug_plus"] = f"--recipe {o.recipe}"
    if bn not in (None, "split"):  # the default depends on the number of ranks, a command should not
        unread["bn_group_size"] = f"--bn {bn}"
    unread |= _unread_of_projector(o)
    if o.eval_freq == 0:
        unread |= dict.fromkeys(("knn_k", "knn_t"), "--eval-freq 0")
    return unread | unread_saves(o)


def _unread_of_projector(o: Any) -> dict[str, str]:
    if o.moco_mlp_layers is None:
        names = ("moco_mlp_bn",) if o.predictor else ("moco_mlp_dim", "moco_mlp_bn")
        return dict.fromkeys(names, "the default of --moco-mlp-layers")
    wide = o.moco_mlp_layers > 1 or o.predictor
    return dict.fromkeys(("mlp",) if wide else ("mlp", "moco_mlp_dim"), f"--moco-mlp-layers {o.moco_mlp_layers}")


def _check_without_queue(o: Any, words: str) -> None:
    """Raises InputError for options that need a queue.

    words: the option that leaves the queue out.
    """
    if o.symmetric and o.keys == "queue":
        raise InputError(f"--symmetric has no meaning with {words}, where both views are queries: leave it out")
    if o.crops and o.keys == "queue":
        raise InputError(f"--crops has no meaning with {words}, where keys are queries too: pass --keys batch")
    if o.predictor and o.keys == "queue":
        raise InputError(f"--predictor has no meaning with {words}, where keys are queries too: pass --keys batch")
    if o.queue_per_view:
        raise InputError(f"--queue-per-view has no meaning with {words}, where there is no queue: leave it out")
    if o.accum_steps > 1:
        raise InputError(
            f"--accum-steps splits the batch, but with {words} all negatives come from one batch: lower --batch-size"
            " instead, or pass --moco-k for a queue"
        )
    if o.batch_size < 2:
        raise InputError(f"{words} compares the images of a batch: --batch-size must be at least 2")
