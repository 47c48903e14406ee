#!/usr/bin/env python
"""Linear classification on frozen features (He et al. 2020, §4.1): what a pretrained encoder's features are worth.

    torchrun --nproc_per_node=8 main_lincls.py --pretrained runs/v2/checkpoint_0199.pth.tar /data/imagenet
    python main_lincls.py --dataset digits --pretrained runs/digits/checkpoint_0039.pth.tar
    python main_lincls.py --evaluate --resume runs/lincls/model_best.pth.tar /data/imagenet

Reads checkpoints of main_moco.py, MoCo, its align/uniform fork, moco-v3, torchvision, timm, ... (moco/encoder_file.py).
Read `probe` downwards. Exit codes (moco/errors.py): 0 done, 2 bad input, 3 numbers gone wrong.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco import checkpoint, distributed, metrics
from moco.data.augment import Augment
from moco.data.datasets import DATASET_DEFAULTS, open_split
from moco.data.loader import Loader
from moco.data.recipes import RECIPES, find_recipe
from moco.data.sampler import Sampler
from moco.data.source import check_same_classes
from moco.device import pick_device
from moco.encoder_file import EncoderFile, load_trunk, read_encoder
from moco.encoders import build_encoder, classifier_name, trunk
from moco.errors import EXIT_OK, InputError, NumericsError, exit_code
from moco.features import centre_crops, extract_features, settle_batchnorm
from moco.logs import RunLog
from moco.meter import Clock, Meter
from moco.options import as_dict, as_json
from moco.probe_options import LinclsOptions, parse_lincls
from moco.provenance import git_state, machine
from moco.schedules import learning_rate

LAST, BEST, RESULT = "checkpoint.pth.tar", "model_best.pth.tar", "lincls.json"


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        options = parse_lincls(argv)
        device = pick_device(options.device)
        with distributed.session(device):
            return probe(options, device)

    return exit_code(run)


def probe(options: LinclsOptions, device: torch.device) -> int:
    started = time.monotonic()
    resumed = classifier_to_resume(options)
    origin = resumed or (read_encoder(options.pretrained) if options.pretrained else None)
    options = resolve(options, origin, resumed is not None)
    if options.dry_run:
        print(as_json(options)) if distributed.rank() == 0 else None
        return EXIT_OK
    assert options.arch and options.recipe and options.image_size and options.seed is not None  # resolved
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(options.deterministic)
    torch.backends.cudnn.benchmark = not options.deterministic

    # Data: crops and flips only, normalised as the encoder was pretrained.
    pretraining = find_recipe(options.recipe)
    recipe, plain = pretraining.for_probe(), Augment(pretraining.for_evaluation(), options.seed)
    val = open_split(options.data, options.dataset, "val", loader=options.loader)
    train = val if options.evaluate else open_split(options.data, options.dataset, "train", loader=options.loader)
    check_same_classes(train, val)
    rank, world = distributed.rank(), distributed.world_size()
    loader = Loader(
        train, Sampler(len(train), options.batch_size, options.seed, drop_last=False, rank=rank, world_size=world),
        size=options.image_size, views=1, scale=recipe.scale, ratio=recipe.ratio, workers=options.workers,
        device=device, seed=options.seed, skip_bad_images=options.skip_bad_images,
    )  # fmt: skip

    # Encoder: its classifier is new and starts as MoCo's; all before it is loaded, frozen, and in evaluation mode.
    encoder = build_encoder(options.arch, len(val.classes), image_size=options.image_size)
    head = encoder.get_submodule(classifier_name(encoder))
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=0.01)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    loaded = load_trunk(encoder, origin) if origin else None
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder.to(device).requires_grad_(False).eval()
    head.requires_grad_(True)
    note = f"no --pretrained: an untrained encoder, drawn from --seed {options.seed}"
    if origin:
        note = f"{origin.path}: {origin.layout}, {loaded}"
    elif settle_batchnorm(encoder, train, pretraining, options.image_size, options, device):
        note += ", with the BatchNorm statistics of the training images"
    rate = options.lr * options.batch_size / 256
    optimizer = torch.optim.SGD(head.parameters(), rate, momentum=options.momentum, weight_decay=options.weight_decay)
    start, best = restore(encoder, optimizer, resumed) if resumed else (options.start_epoch, Best())

    # Neither the trunk nor the validation crops ever change, so the features to validate on are computed once.
    centres = centre_crops(val, pretraining, options.image_size, options, device)
    features, labels = extract_features(trunk(encoder), centres, plain)
    if options.evaluate:
        top1, top5 = accuracy(head, features, labels)
        print(f"top-1 {top1:.2f}  top-5 {top5:.2f}  ({len(val)} images)") if rank == 0 else None
        return EXIT_OK

    folder = Path(options.output_dir)
    about = {"options": as_dict(options), "world_size": world, "git": git_state(), "machine": machine(device)}
    with RunLog(folder, rank=rank, tensorboard=False) as log:
        log.cut_back(start * len(loader))
        log.start(about, epoch=start, global_step=start * len(loader))
        for text in (note, *train.notes, *val.notes):
            log.say(text)
        log.say(
            f"{len(train)} images of {len(val.classes)} classes, {len(val)} to validate; {options.arch} at"
            f" {options.image_size} px; learning rate {options.lr:g} x {options.batch_size}/256 = {rate:g}; to {folder}"
        )
        training = Probe(options, device, encoder, head, optimizer, rate, loader, Augment(recipe, options.seed), log)
        for epoch in range(start, options.epochs):
            frozen = copy.deepcopy(training.trunk.state_dict()) if epoch == start else {}
            training.one_epoch(epoch)
            check_unchanged(frozen, training.trunk.state_dict())
            top1, top5 = accuracy(head, features, labels)
            log.eval({"val_acc1": top1, "val_acc5": top5}, epoch=epoch, global_step=(epoch + 1) * len(loader))
            names = [LAST, BEST] if top1 > best.acc1 else [LAST]
            best = Best(top1, top5, epoch + 1) if top1 > best.acc1 else best
            training.save(epoch + 1, best, val.classes, names)
        top1, top5 = accuracy(head, features, labels)
        result = {
            "top1": top1, "top5": top5, "best_top1": best.acc1, "best_top5": best.acc5, "best_epoch": best.epoch,
            "epochs": max(start, options.epochs), "classes": len(val.classes), "images": [len(train), len(val)],
            "arch": options.arch, "pretrained": options.pretrained, "seconds": time.monotonic() - started, **about,
        }  # fmt: skip
        if rank == 0:
            (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
        log.say(f"top-1 {top1:.2f}  top-5 {top5:.2f}  best {best.acc1:.2f} (epoch {best.epoch})  {folder / RESULT}")
    return EXIT_OK


def classifier_to_resume(options: LinclsOptions) -> EncoderFile | None:
    """The checkpoint of this main that --resume means; 'auto' with nothing there is a fresh start."""
    if options.evaluate and options.resume is None:
        raise InputError("--evaluate needs a trained classifier: pass --resume and a checkpoint of main_lincls.py")
    path = os.path.join(options.output_dir, LAST) if options.resume == "auto" else options.resume
    if path is None or (options.resume == "auto" and not distributed.on_rank_0(lambda: os.path.exists(path))):
        return None
    file = read_encoder(path)
    if not {"optimizer", "best_acc1"} <= file.rest.keys():
        raise InputError(f"{path} holds an encoder ({file.layout}) and no linear classifier: pass it as --pretrained")
    return file


def resolve(options: LinclsOptions, origin: EncoderFile | None, resumed: bool) -> LinclsOptions:
    """What the command leaves open is taken from the run that the encoder comes from, then from the data set."""
    before = origin.options if origin else {}
    if origin and origin.arch and options.arch not in (None, origin.arch):
        raise InputError(f"{origin.path} holds a {origin.arch}, not a {options.arch}: pass --arch {origin.arch}")
    size, recipe = DATASET_DEFAULTS[options.dataset]
    if before.get("dataset") == options.dataset:  # what suits one data set need not suit another
        size = before.get("image_size") or size
        recipe = before["recipe"] if before.get("recipe") in RECIPES else recipe
    seed = before.get("seed") if options.seed is None and resumed else options.seed
    seed = distributed.broadcast_object(random.SystemRandom().randrange(2**31) if seed is None else seed)
    arch = options.arch or (origin.arch if origin else None) or "resnet50"
    name = f"{origin.path.absolute().parent.name}-{origin.path.name.split('.')[0]}" if origin else "untrained"
    folder = options.output_dir or os.path.join("runs", f"lincls-{options.dataset}-{arch.replace(':', '-')}-{name}")
    if options.resume is None and distributed.on_rank_0(lambda: os.path.exists(os.path.join(folder, LAST))):
        raise InputError(f"{folder} already holds a probe: pass --resume auto to go on, or another --output-dir")
    return dataclasses.replace(
        options, arch=arch, image_size=options.image_size or size, recipe=options.recipe or recipe, seed=seed,
        output_dir=folder, pretrained=options.pretrained or (before.get("pretrained") if resumed else None),
    )  # fmt: skip


@dataclass(frozen=True)
class Best:
    """The best validation accuracies so far, in percent, and after how many epochs."""

    acc1: float = 0.0
    acc5: float = 0.0
    epoch: int = 0


def restore(encoder: nn.Module, optimizer: torch.optim.Optimizer, file: EncoderFile) -> tuple[int, Best]:
    """Puts the classifier and its momentum back; epochs done, and the best so far. MoCo's own files go on as well."""
    name = classifier_name(encoder)
    for key, here in encoder.get_submodule(name).state_dict().items():
        there = file.state.get(f"{name}.{key}")
        if there is None or there.shape != here.shape:
            told = len(there) if there is not None else "no"
            raise InputError(f"{file.path} tells {told} classes apart, the data has {len(here)}: pass its own data")
        here.copy_(there)
    try:
        optimizer.load_state_dict(file.rest["optimizer"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the optimiser's state in {file.path} is not that of a linear classifier: {error}") from error
    more = file.rest.get("moco_lincls", {})
    return file.epoch or 0, Best(float(file.rest["best_acc1"]), more.get("best_acc5", 0.0), more.get("best_epoch", 0))


@torch.no_grad()
def accuracy(head: nn.Module, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """(top-1, top-5) in percent of the classifier on the features [n, d] of the validation images."""
    parts = zip(features.split(4096), labels.split(4096), strict=True)
    right = torch.stack([metrics.topk_correct(head(x), y) for x, y in parts]).sum(0)
    top1, top5 = (100 * right.double() / len(labels)).tolist()
    return top1, top5


def check_unchanged(before: dict[str, Tensor], now: dict[str, Tensor]) -> None:
    """MoCo's sanity check: a probe that trains its encoder measures something else."""
    changed = [name for name, value in before.items() if not torch.equal(value, now[name])]
    if changed:
        raise NumericsError(f"{changed[0]} changed although the trunk is frozen: please report this fault")


@dataclass
class Probe:
    """The linear classifier in training."""

    options: LinclsOptions
    device: torch.device
    encoder: nn.Module
    head: nn.Module
    optimizer: torch.optim.Optimizer
    rate: float
    loader: Loader
    augment: Augment
    log: RunLog

    def __post_init__(self) -> None:
        self.trunk = trunk(self.encoder)
        self.parallel_head = distributed.data_parallel(self.head, self.device)

    def one_epoch(self, epoch: int) -> None:
        """Waits for the device every `print_freq` steps only. Ranks may hold uneven parts of a batch, or none."""
        options, steps, world = self.options, len(self.loader), distributed.world_size()
        lr = learning_rate(epoch, self.rate, options.epochs, options.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        clock, since_print, of_epoch = Clock(), Meter(), Meter()
        with contextlib.closing(self.loader.epoch(epoch)) as batches:
            asked = time.perf_counter()
            for step, batch in enumerate(batches):
                clock.waited(asked)
                n, total = len(batch.index), sum(self.loader.sampler.sizes(step))
                with torch.no_grad():
                    features = self.trunk(self.augment(batch.crops[:, 0], batch.index, epoch))
                logits = self.parallel_head(features)
                summed = F.cross_entropy(logits, batch.labels, reduction="sum")
                self.optimizer.zero_grad(set_to_none=True)
                (summed * (world / total)).backward()  # DDP takes the mean over ranks: this is the mean over samples
                self.optimizer.step()
                acc1, acc5 = metrics.topk_accuracy(logits.detach(), batch.labels)
                for meter in (since_print, of_epoch):
                    meter.add({"loss": summed.detach() / max(1, n), "acc1": acc1, "acc5": acc5}, n)
                clock.step(total)
                at = dict(epoch=epoch, step=step + 1, steps=steps, epochs=options.epochs)
                if (step + 1) % options.print_freq == 0 or step + 1 == steps:
                    timing = clock.lap(self.device, (options.epochs - epoch) * steps - step - 1)
                    self.log.train({**since_print.read(), "lr": lr}, timing, **at, global_step=epoch * steps + step + 1)
                else:
                    self.log.advance(**at)
                asked = time.perf_counter()
        means = of_epoch.read()
        self.log.epoch(means, epoch=epoch, global_step=(epoch + 1) * steps)
        if not (math.isfinite(means["loss"]) and all(p.isfinite().all() for p in self.head.parameters())):
            raise NumericsError(f"loss or weights are not finite after epoch {epoch + 1}: use a smaller --lr")

    def save(self, epochs_done: int, best: Best, classes: list[str], names: list[str]) -> None:
        """MoCo's layout, its keys with `module.` whatever the number of ranks; ours beside it under `moco_lincls`."""
        state: dict[str, Any] = {
            "epoch": epochs_done,
            "arch": self.options.arch,
            "state_dict": {f"module.{name}": value for name, value in self.encoder.state_dict().items()},
            "best_acc1": best.acc1,
            "optimizer": self.optimizer.state_dict(),
            "moco_lincls": {
                "best_acc5": best.acc5, "best_epoch": best.epoch, "classes": list(classes),
                "options": as_dict(self.options), "git": git_state(),
            },
        }  # fmt: skip
        self.log.sync()
        folder = Path(self.options.output_dir)
        for name in names:
            distributed.on_rank_0(functools.partial(checkpoint.save, folder / name, state))


if __name__ == "__main__":
    sys.exit(main())
