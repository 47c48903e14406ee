"""Saves and restores a probe: MoCo's layout for the chosen classifier."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco import distributed
from moco.encoders import classifier_name
from moco.encoders.files import EncoderFile, network_of, read_encoder
from moco.encoders.preprocessing import suited, with_images_of
from moco.errors import InputError, flag
from moco.evaluate.layers import OUTPUT, TRUNK
from moco.probe.options import LinclsOptions
from moco.probe.training import Classifiers
from moco.run import checkpoint
from moco.run.options import CommonOptions, as_dict
from moco.run.provenance import git_state

LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"
# options that a resumed probe must not change
_SAME = ("features_from", "optimizer", "train_fraction", "sweep", "sweep_lrs", "sweep_wds", "cached", "finetune")


@dataclass(frozen=True)
class Best:
    """Holds the best epoch's validation accuracies in percent, and its score.

    The score is the top-1 accuracy on the validation images (MoCo). In a sweep it is that of the best classifier on the
    held-out training images.
    """

    acc1: float = 0.0
    acc5: float = 0.0
    epoch: int = 0
    score: float = 0.0


def classifier_to_resume(options: LinclsOptions) -> EncoderFile | None:
    """Reads the checkpoint of --resume; None to start new.

    'auto' starts new if there is no checkpoint. InputError for a checkpoint without a classifier.
    """
    if options.evaluate and options.resume is None:
        raise InputError("--evaluate needs a trained classifier: pass --resume and a checkpoint of main_lincls.py")
    file = file_to_resume(options.resume, options.output_dir)
    if file is not None and not {"optimizer", "best_acc1"} <= file.rest.keys():
        raise InputError(f"{file.path} holds an encoder ({file.layout}), no linear classifier: pass it as --pretrained")
    return file


def file_to_resume(resume: str | None, output_dir: str) -> EncoderFile | None:
    """Reads the file of --resume.

    None without it, and for 'auto' if nothing was saved.
    """
    path = os.path.join(output_dir, LAST) if resume == "auto" else resume
    if path is None or (resume == "auto" and not distributed.on_rank_0(lambda: os.path.exists(path))):
        return None
    return read_encoder(path)


def check_arch_of(origin: EncoderFile | None, arch: str | None) -> None:
    """Raises InputError if --arch names another network than the file holds."""
    if origin and origin.arch and arch not in (None, origin.arch):
        raise InputError(f"{origin.path} holds a {origin.arch}, not a {arch}: pass --arch {origin.arch}")


def check_same(options: CommonOptions, resumed: EncoderFile, names: Iterable[str]) -> None:
    """Raises InputError if an option differs from the resumed probe's."""
    before = resumed.options
    for name in names:
        if name in before and before[name] != getattr(options, name):
            raise InputError(
                f"{resumed.path} was trained with {flag(name)} {before[name]}; pass the same, or another --output-dir"
            )


def seed_of(seed: int | None, before: Mapping[str, Any], resumed: bool) -> int:
    """Returns the seed, the same on all ranks.

    It is --seed, else that of the resumed probe, else a new one.
    """
    chosen = before.get("seed") if seed is None and resumed else seed
    return distributed.broadcast_object(random.SystemRandom().randrange(2**31) if chosen is None else chosen)


def network_for(origin: EncoderFile | None, arch: str | None, words: list[str], default: str) -> tuple[str, list[str]]:
    """Returns --arch and --arch-arg of the probe, as in the file."""
    if origin and (origin.arch or arch):
        return network_of(origin, arch, words)
    return arch or default, words


def name_for(origin: EncoderFile | None) -> str:
    """Returns the encoder's run and checkpoint, to name an output folder."""
    return f"{origin.path.absolute().parent.name}-{origin.path.name.split('.')[0]}" if origin else "untrained"


def resolve(options: LinclsOptions, origin: EncoderFile | None, resumed: bool) -> LinclsOptions:
    """Fills open options from the encoder's run, then from the data set."""
    before = origin.options if origin else {}
    check_arch_of(origin, options.arch)
    if options.evaluate:  # one classifier is measured, however it was trained
        which = before.get("features_from", TRUNK)
        options = dataclasses.replace(options, features_from=which, sweep=False, cached=False, finetune=False)
    elif resumed and origin:
        drawn = options.sweep or options.train_fraction < 1  # the seed chose the images
        of_drawing = ("held_out", *(("seed",) if options.seed is not None else ()))
        check_same(options, origin, _SAME + (of_drawing if drawn else ()))
    options = with_images_of(options, before)
    size, recipe = suited(options.dataset, before)
    seed = seed_of(options.seed, before, resumed)
    arch, arch_arg = network_for(origin, options.arch, options.arch_arg, "resnet50")
    own = re.sub("[:/]", "-", f"lincls-{options.dataset}-{arch}-{name_for(origin)}")
    folder = options.output_dir or os.path.join("runs", own)
    if options.resume is None and distributed.on_rank_0(lambda: os.path.exists(os.path.join(folder, LAST))):
        raise InputError(f"{folder} already holds a probe: pass --resume auto to go on, or another --output-dir")
    return dataclasses.replace(
        options, arch=arch, arch_arg=arch_arg, image_size=options.image_size or size,
        recipe=options.recipe or recipe, seed=seed,
        output_dir=folder, pretrained=options.pretrained or (before.get("pretrained") if resumed else None),
    )  # fmt: skip


def restore_classifiers(encoder: nn.Module, classifiers: Classifiers, file: EncoderFile, which: str) -> None:
    """Restores all classifiers, or the only one. InputError if the shapes differ."""
    ours = file.rest.get("moco_lincls", {})
    prefix = classifier_name(encoder) + "."
    if len(classifiers) > 1:
        there = ours.get("classifiers", {})
    else:
        own = {key.removeprefix(prefix): value for key, value in file.state.items() if key.startswith(prefix)}
        there = {f"linears.0.{key}": value for key, value in (own if which == TRUNK else ours["classifier"]).items()}
    for key, here in classifiers.state_dict().items():
        value = there.get(key)
        if value is None or value.shape != here.shape:
            told = len(value) if value is not None else "no"
            raise InputError(
                f"{file.path} was trained on {told} classes, but the data has {len(here)}: pass the data it was trained"
                " on"
            )
        here.copy_(value)


def restore_progress(optimizer: torch.optim.Optimizer, file: EncoderFile) -> tuple[int, Best, int]:
    """Restores the optimiser; returns (epochs done, best so far, chosen classifier).

    Also from files of MoCo itself. InputError if the state does not fit.
    """
    try:
        optimizer.load_state_dict(file.rest["optimizer"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the optimiser's state in {file.path} is not that of a linear classifier: {error}") from error
    ours = file.rest.get("moco_lincls", {})
    acc1 = float(file.rest["best_acc1"])
    best = Best(acc1, ours.get("best_acc5", 0.0), ours.get("best_epoch", 0), ours.get("best_score", acc1))
    return file.epoch or 0, best, ours.get("chosen", 0)


def save(
    options: LinclsOptions,
    encoder: nn.Module,
    classifiers: Classifiers,
    chosen: int,
    optimizer: torch.optim.Optimizer | None,
    epochs_done: int,
    best: Best,
    classes: list[str],
    names: list[str],
) -> None:
    """Writes the files `names`.

    Their `state_dict` is the encoder's, with `module.` before the names for any number of ranks. The chosen classifier
    is the encoder's own on features of the trunk; on other features it is in `moco_lincls`.
    """
    head = classifier_name(encoder) + "."
    keep_head = options.features_from == OUTPUT  # the classifier reads the projection head's output
    weights = {name: value for name, value in encoder.state_dict().items() if keep_head or not name.startswith(head)}
    classifier: dict[str, Tensor] = {k: v.detach() for k, v in classifiers[chosen].state_dict().items()}
    more: dict[str, Any] = {}
    if options.features_from == TRUNK:
        weights |= {f"{head}{name}": value for name, value in classifier.items()}
    else:
        more["classifier"] = classifier
    if len(classifiers) > 1:
        more |= {"classifiers": dict(classifiers.state_dict()), "chosen": chosen}
    state: dict[str, Any] = {
        "epoch": epochs_done,
        "arch": options.arch,
        "state_dict": {f"module.{name}": value for name, value in weights.items()},
        "best_acc1": best.acc1,
        "optimizer": optimizer.state_dict() if optimizer else {},
        "moco_lincls": {
            "best_acc5": best.acc5, "best_epoch": best.epoch, "best_score": best.score, "classes": list(classes),
            "options": as_dict(options), "git": git_state(), **more,
        },
    }  # fmt: skip
    for name in names:
        distributed.on_rank_0(functools.partial(checkpoint.save, Path(options.output_dir) / name, state))
