"""Linear classification on frozen features (He et al. 2020, §4.1): what a pretrained encoder's features are worth.

    torchrun --nproc_per_node=8 main_lincls.py --pretrained runs/v2/checkpoint_0199.pth.tar /data/imagenet
    python main_lincls.py --dataset digits --pretrained runs/digits/checkpoint_0039.pth.tar --sweep
    python main_lincls.py --dataset digits --pretrained runs/digits/checkpoint_0039.pth.tar --cached
    python main_lincls.py --evaluate --resume runs/lincls/model_best.pth.tar /data/imagenet

Reads checkpoints of main_moco.py, MoCo, its align/uniform fork, moco-v3, torchvision, timm, ... (moco/interop/).
Without a flag that says otherwise the protocol is MoCo's; docs/evaluation.md has the others. Read `probe` downwards.
Exit codes (moco/errors.py): 0 done, 2 bad input, 3 numbers gone wrong.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moco import distributed
from moco.commands import end_process, run_command
from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.source import Source, check_same_classes, hold_out, share_of_classes
from moco.distributed.session import pick_device
from moco.encoders import trunk
from moco.encoders.files import read_encoder
from moco.errors import EXIT_OK, InputError
from moco.evaluate.features import centre_crops, extract_features
from moco.probe.logistic import five_nearest, solve
from moco.probe.model import Rows, build, stream_of
from moco.probe.options import LinclsOptions, parse_lincls
from moco.probe.saved import (
    BEST,
    LAST,
    Best,
    classifier_to_resume,
    resolve,
    restore_classifiers,
    restore_progress,
    save,
)
from moco.probe.training import Classifiers, Probe, accuracies, check_unchanged, make_optimizer
from moco.run.arithmetic import check_deterministic, set_arithmetic
from moco.run.files import write_json
from moco.run.lock import only_run_in
from moco.run.log import RunLog
from moco.run.options import as_dict, as_json
from moco.run.provenance import git_state, machine
from moco.world import World

RESULT = "lincls.json"


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        options = parse_lincls(argv)
        world = World.launched()
        device = pick_device(options.device, world)
        with distributed.session(world, device):
            return probe(options, world, device)

    return run_command(run)


def probe(options: LinclsOptions, world: World, device: torch.device) -> int:
    started = time.monotonic()
    resumed = classifier_to_resume(options)
    origin = resumed or (read_encoder(options.pretrained) if options.pretrained else None)
    options = resolve(options, origin, resumed is not None)
    if options.dry_run:
        print(as_json(options)) if world.rank == 0 else None
        return EXIT_OK
    assert options.recipe and options.image_size and options.seed is not None  # resolved
    torch.manual_seed(options.seed)
    kernels = set_arithmetic(options.deterministic, device)

    # Data: crops and flips only, normalised as the encoder was pretrained.
    recipe = find_recipe(options.recipe)
    val = options.open("val")
    train = val if options.evaluate else options.open("train")
    check_same_classes(train, val)
    if len(val.classes) < 2:
        raise InputError(f"the data has one class, {val.classes[0]!r}: give at least two to tell apart")
    if options.train_fraction < 1 and not options.evaluate:
        train = share_of_classes(train, options.train_fraction, options.seed)
    fit, held_out = hold_out(train, options.held_out, options.seed) if options.sweep else (train, None)

    # Model: `network` gives features of images, and `classifiers` read them.
    model = build(options, origin, recipe, fit, len(val.classes), device)
    encoder, network, classifiers = model.encoder, model.network, model.classifiers
    if options.finetune:  # else no gradient passes through it
        check_deterministic(encoder, options.arch or "this network", options.deterministic, device)
    if resumed and not options.solved:
        restore_classifiers(encoder, classifiers, resumed, options.features_from)

    def features_of(source: Source) -> Rows:
        crops = centre_crops(source, recipe, options.image_size or 0, options, device)
        return extract_features(network, crops, Augment(recipe.for_evaluation(), options.seed or 0))

    # Neither a frozen network nor the validation crops ever change, so the features to validate on are computed once.
    validation, held = features_of(val), features_of(held_out) if held_out else None
    if options.evaluate:
        top1, top5 = (float(percent[0]) for percent in accuracies(classifiers, *validation))
        print(f"top-1 {top1:.2f}  top-5 {top5:.2f}  ({len(val)} images)") if world.rank == 0 else None
        return EXIT_OK

    folder = Path(options.output_dir)
    about: dict[str, Any] = {"options": as_dict(options), "git": git_state(), "machine": machine(device)}
    about["world_size"] = world.size
    with only_run_in(folder), RunLog(folder, rank=world.rank, tensorboard=False) as log:
        greeting = "\n".join([
            model.note, *train.notes, *val.notes, kernels,
            f"{len(train)} images of {len(val.classes)} classes, {len(val)} to validate; {options.arch} at"
            f" {options.image_size} px; {options.in_words()}; to {folder}",
        ])  # fmt: skip
        if options.solved:
            log.start(about)
            log.say(greeting)
            bank = features_of(train)
            best, result = solved(options, encoder, bank, validation, val.classes)
        else:
            stream = stream_of(options, recipe, fit, network, device, features_of)
            tuned = trunk(encoder) if options.finetune else None
            optimizer, rates = make_optimizer(options, classifiers, tuned)
            training = Probe(options, device, encoder, classifiers, tuned, optimizer, rates, stream, log)
            start, best = options.start_epoch, Best()
            if resumed:
                start, best, training.chosen = restore_progress(training.optimizer, resumed)
            log.cut_back(start * stream.sampler.steps)
            log.start(about, epoch=start, global_step=start * stream.sampler.steps)
            log.say(greeting)
            validate: Callable[[], Rows] = (lambda: features_of(val)) if options.finetune else (lambda: validation)
            frozen = None if options.finetune else network
            best, result = train_epochs(training, start, best, validate, held, frozen, val.classes)
        result |= {
            "best_top1": best.acc1, "best_top5": best.acc5, "best_epoch": best.epoch, "protocol": options.protocol,
            "classes": len(val.classes), "images": [len(train), len(val)], "arch": options.arch,
            "pretrained": options.pretrained, "seconds": time.monotonic() - started, **about,
        }  # fmt: skip
        distributed.on_rank_0(lambda: write_json(folder / RESULT, result))
        log.say(
            f"top-1 {result['top1']:.2f}  top-5 {result['top5']:.2f}  best {best.acc1:.2f} (epoch {best.epoch})"
            f"  {folder / RESULT}"
        )
    return EXIT_OK


def train_epochs(
    training: Probe,
    start: int,
    best: Best,
    validate: Callable[[], Rows],
    held: Rows | None,
    network: nn.Module | None,
    classes: list[str],
) -> tuple[Best, dict[str, Any]]:
    """From epoch `start` to the last, each with its evaluation and its checkpoint. Returns the best, and the result.

    `held`: features of held-out training images, by which one of several classifiers is chosen after every epoch.
    `network`: what must not change meanwhile.
    """
    options, classifiers = training.options, training.classifiers
    of_held = accuracies(classifiers, *held)[0] if held else None
    for epoch in range(start, options.epochs):
        before = copy.deepcopy(network.state_dict()) if network and epoch == start else {}
        training.one_epoch(epoch)
        check_unchanged(before, network.state_dict() if network else {})
        figures: dict[str, float] = {}
        if held:
            of_held = accuracies(classifiers, *held)[0]
            training.chosen = int(of_held.argmax())
            figures["held_out_acc1"] = float(of_held[training.chosen])
        top1, top5 = (float(percent[training.chosen]) for percent in accuracies(classifiers, *validate()))
        figures |= {"val_acc1": top1, "val_acc5": top5}
        training.log.eval(figures, epoch=epoch, global_step=(epoch + 1) * training.stream.sampler.steps)
        score = figures.get("held_out_acc1", top1)
        names = [LAST, BEST] if score > best.score else [LAST]
        best = Best(top1, top5, epoch + 1, score) if score > best.score else best
        training.log.sync()
        chosen, optimizer = training.chosen, training.optimizer
        save(options, training.encoder, classifiers, chosen, optimizer, epoch + 1, best, classes, names)
    top1, top5 = (float(percent[training.chosen]) for percent in accuracies(classifiers, *validate()))
    result: dict[str, Any] = {"top1": top1, "top5": top5, "epochs": max(start, options.epochs)}
    if of_held is not None:
        settings = options.settings()
        result |= {"lr": settings[training.chosen][0], "weight_decay": settings[training.chosen][1]}
        result["sweep"] = [
            {"lr": lr, "weight_decay": decay, "held_out_top1": percent}
            for (lr, decay), percent in zip(settings, of_held.tolist(), strict=True)
        ]
        training.log.say(f"chosen on held-out training images: learning rate {result['lr']:g} per 256, weight decay"
                         f" {result['weight_decay']:g} ({float(of_held.max()):.2f} there)")  # fmt: skip
    return best, result


def solved(
    options: LinclsOptions, encoder: nn.Module, bank: Rows, validation: Rows, classes: list[str]
) -> tuple[Best, dict[str, Any]]:
    """--cached: the classifier that is the optimum, and the other figures of the STL-10 protocol."""
    found = solve(*bank, len(classes), options.folds, options.seed or 0)
    top1, top5 = (float(percent[0]) for percent in accuracies(Classifiers([found.linear]), *validation))
    best = Best(top1, top5)
    save(options, encoder, Classifiers([found.linear]), 0, None, 0, best, classes, [LAST, BEST])
    return best, {
        "top1": top1, "top5": top5, "epochs": 0, "penalty": found.penalty, "cv_top1": found.cv_top1,
        "cv_top1_std": found.cv_top1_std, "knn5_top1": five_nearest(*bank, *validation, len(classes)),
        "held_out_top1": {f"{penalty:g}": percent for penalty, percent in found.held_out.items()},
    }  # fmt: skip


if __name__ == "__main__":
    end_process(main())
