"""Measures frozen features by linear classification (He et al. 2020, §4.1).

    torchrun --nproc_per_node=8 main_lincls.py --pretrained runs/v2/checkpoint_0199.pth.tar /data/imagenet
    python main_lincls.py --dataset digits --pretrained runs/digits/checkpoint_0039.pth.tar --sweep
    python main_lincls.py --dataset digits --pretrained runs/digits/checkpoint_0039.pth.tar --cached
    python main_lincls.py --evaluate --resume runs/lincls/model_best.pth.tar /data/imagenet

Reads checkpoints of main_moco.py, MoCo, its align/uniform fork, moco-v3, torchvision, timm, ... (moco/encoders/).
The protocol is MoCo's, unless a flag changes it; docs/evaluation.md has the others. Begin to read at `probe`.
Exit codes (moco/errors.py): 0 done, 2 bad input, 3 numbers gone wrong.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NoReturn

import torch

from moco import distributed
from moco.commands import end_with, run_command
from moco.data.source import Source, check_same_classes, share_of_classes
from moco.distributed.session import pick_device
from moco.encoders.files import read_encoder
from moco.errors import EXIT_OK, InputError
from moco.probe.finetune import Finetune
from moco.probe.model import Setup, build
from moco.probe.options import LinclsOptions, parse_lincls
from moco.probe.protocols import CachedSweep, Linear, Solved, Sweep
from moco.probe.saved import classifier_to_resume, resolve
from moco.probe.training import accuracies
from moco.run.arithmetic import set_arithmetic
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
    assert options.recipe and options.seed is not None  # resolved
    torch.manual_seed(options.seed)
    kernels = set_arithmetic(options.deterministic, device)
    protocol = protocol_of(options)

    # Data: crops and flips only, normalised as the encoder was pretrained.
    recipe = options.find_recipe(options.recipe)
    train, val = open_images(options)
    fit, held_out = protocol.split(train)

    # Model: `network` gives features of images, and `classifiers` read them.
    count = len(protocol.settings())
    model = protocol.prepare(build(options, origin, recipe, fit, len(val.classes), count, device))
    if resumed:
        protocol.restore(model, resumed)

    setup = Setup(options, device, recipe, fit, held_out, val, model, resumed)
    if options.evaluate:
        top1, top5 = (float(percent[0]) for percent in accuracies(model.classifiers, *setup.features_of(val)))
        print(f"top-1 {top1:.2f}  top-5 {top5:.2f}  ({len(val)} images)") if world.rank == 0 else None
        return EXIT_OK

    features = protocol.features(setup)
    folder = Path(options.output_dir)
    about = {"options": as_dict(options), "git": git_state(), "machine": machine(device), "world_size": world.size}
    with only_run_in(folder), RunLog(folder, rank=world.rank, tensorboard=False) as log:
        told = (
            f"{len(train)} images of {len(val.classes)} classes, {len(val)} to validate; {options.arch} at"
            f" {options.image_size} px; {protocol.in_words()}; to {folder}"
        )
        greeting = "\n".join([model.note, *train.notes, *val.notes, kernels, told])
        best, result = protocol.run(setup, features, log, about, greeting)
        result |= {
            "best_top1": best.acc1, "best_top5": best.acc5, "best_epoch": best.epoch, "protocol": protocol.name,
            "classes": len(val.classes), "images": [len(train), len(val)], "arch": options.arch,
            "pretrained": options.pretrained, "seconds": time.monotonic() - started, **about,
        }  # fmt: skip
        distributed.on_rank_0(lambda: write_json(folder / RESULT, result))
        log.say(
            f"top-1 {result['top1']:.2f}  top-5 {result['top5']:.2f}  best {best.acc1:.2f} (epoch {best.epoch})"
            f"  {folder / RESULT}"
        )
    return EXIT_OK


def protocol_of(options: LinclsOptions) -> Linear:
    """Returns the protocol that the options ask for."""
    if options.finetune:
        return Finetune(options)
    if options.cached:
        return CachedSweep(options) if options.sweep else Solved(options)
    return Sweep(options) if options.sweep else Linear(options)


def open_images(options: LinclsOptions) -> tuple[Source, Source]:
    """Opens the images to train and to validate on.

    InputError if their classes differ, or are not at least two.
    """
    val = options.open("val")
    train = val if options.evaluate else options.open("train")
    check_same_classes(train, val)
    if len(val.classes) < 2:
        raise InputError(f"the data has one class, {val.classes[0]!r}: give at least two")
    if options.train_fraction < 1 and not options.evaluate:
        train = share_of_classes(train, options.train_fraction, options.seed or 0)
    return train, val


def script() -> NoReturn:
    """Runs the console script."""
    end_with(main)


if __name__ == "__main__":
    end_with(main)
