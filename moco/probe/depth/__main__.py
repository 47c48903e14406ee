"""Predicts depth from a frozen encoder's feature maps.

    python -m moco.probe.depth DATA --pretrained runs/nyu/checkpoint_0399.pth.tar
    python -m moco.probe.depth DATA --pretrained runs/nyu/checkpoint_0399.pth.tar --features-from conv4
    python -m moco.probe.depth DATA --evaluate --resume runs/depth/model_best.pth.tar

As in Wang & Isola 2020, appendix B: NYU-Depth-V2. DATA is NYU-Depth-V2's folder, or one with train/ and val/ of pairs
(docs/depth.md). Images and depth are cropped and flipped alike; pixels without depth do not count. It writes log.jsonl,
checkpoint.pth.tar, model_best.pth.tar, depth.json and predictions.png. It takes one process. Exit codes
(moco/errors.py): 0 done, 2 bad input, 3 numbers gone wrong.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import torch

from moco.commands import end_with, run_command
from moco.data.augment import Augment
from moco.data.augment.recipes import Recipe
from moco.data.depth import DepthSource
from moco.data.depth_crops import DepthLoader
from moco.data.sampler import Sampler
from moco.distributed.session import pick_device
from moco.encoders import build_encoder
from moco.encoders.files import EncoderFile, read_encoder
from moco.errors import EXIT_OK, InputError
from moco.evaluate.layers import FeatureMaps
from moco.metrics.depth import depth_errors
from moco.probe.depth.grid import grid
from moco.probe.depth.options import DepthOptions, parse_depth
from moco.probe.depth.predictor import DepthPredictor
from moco.probe.depth.saved import predictor_to_resume, resolve
from moco.probe.depth.training import DepthProbe
from moco.probe.model import load_frozen
from moco.run.arithmetic import set_arithmetic
from moco.run.files import write_bytes, write_json
from moco.run.lock import only_run_in
from moco.run.log import RunLog
from moco.run.options import as_dict, as_json
from moco.run.provenance import git_state, machine
from moco.world import World

RESULT = "depth.json"
GRID = "predictions.png"


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        options = parse_depth(argv)
        world = World.launched()
        if world.size > 1:
            raise InputError("python -m moco.probe.depth takes one process: start it without torchrun")
        return probe(options, pick_device(options.device, world))

    return run_command(run)


def probe(options: DepthOptions, device: torch.device) -> int:
    started = time.monotonic()
    resumed = predictor_to_resume(options)
    origin = resumed or (read_encoder(options.pretrained) if options.pretrained else None)
    options = resolve(options, origin, resumed is not None)
    if options.dry_run:
        print(as_json(options))
        return EXIT_OK
    assert options.recipe and options.image_size and options.seed is not None  # resolved
    torch.manual_seed(options.seed)
    kernels = set_arithmetic(options.deterministic, device)

    recipe = options.find_recipe(options.recipe)
    val = with_depth(options, "val")
    train = val if options.evaluate else with_depth(options, "train")
    training, note = build(options, origin, recipe, train, val, device)
    start = training.restore(resumed) if resumed else 0
    if options.evaluate:
        print(f"{in_words(training.errors())}  ({len(val)} images)")
        return EXIT_OK

    folder = Path(options.output_dir)
    steps = len(training.train)
    about = {"options": as_dict(options), "git": git_state(), "machine": machine(device)}
    with only_run_in(folder), RunLog(folder, tensorboard=False) as log:
        log.cut_back(start * steps)
        log.start(about, epoch=start, global_step=start * steps)
        told = (
            f"{len(train)} images, {len(val)} to validate; {options.features_from} of {options.arch} at"
            f" {options.image_size} px; learning rate {options.lr:g}; to {folder}"
        )
        log.say("\n".join([note, *train.notes, *val.notes, kernels, told]))
        constant = training.constant_errors()  # before any training: data without depth is refused here
        for epoch in range(start, options.epochs):
            training.one_epoch(epoch, log)
            training.after_epoch(epoch, log)
        predicted, truth = training.predictions()
        write_bytes(folder / GRID, grid(training.val, predicted, truth))
        errors = depth_errors(predicted, truth)
        result = {
            **errors, "best_mse": training.best.mse, "best_epoch": training.best.epoch, "constant": constant,
            "epochs": max(start, options.epochs), "images": [len(train), len(val)], "arch": options.arch,
            "pretrained": options.pretrained, "seconds": time.monotonic() - started, **about,
        }  # fmt: skip
        write_json(folder / RESULT, result)
        log.say(f"{in_words(errors)}  {folder / RESULT}")
        log.say(f"{in_words(constant)}  of the training images' mean depth, for comparison")
    return EXIT_OK


def with_depth(options: DepthOptions, split: str) -> DepthSource:
    """Opens the source of a split. InputError if it has no depth."""
    source = options.open(split, labels_required=False)
    if not hasattr(source, "depth"):
        raise InputError(f"--dataset {options.dataset} has no depth: pass --dataset nyu-depth")
    return cast(DepthSource, source)


def build(
    options: DepthOptions,
    origin: EncoderFile | None,
    recipe: Recipe,
    train: DepthSource,
    val: DepthSource,
    device: torch.device,
) -> tuple[DepthProbe, str]:
    """Builds frozen encoder, new predictor and loaders, with a note."""
    assert options.arch and options.image_size and options.seed is not None  # resolved
    encoder = build_encoder(options.arch, 1, image_size=options.image_size, arguments=options.arch_arg)
    note = load_frozen(encoder, options, options.image_size, origin, recipe, train, device)
    maps = FeatureMaps(encoder, options.features_from, options.image_size)
    predictor = DepthPredictor(maps.channels, maps.side, options.image_size).to(device)
    crops = recipe.for_probe()
    how: dict[str, Any] = dict(
        size=options.image_size, workers=options.workers, device=device, seed=options.seed,
        skip_bad_images=options.skip_bad_images,
    )  # fmt: skip
    in_turn = Sampler(len(val), options.batch_size, options.seed, shuffle=False, drop_last=False)
    shuffled = Sampler(len(train), options.batch_size, options.seed, drop_last=False)
    return DepthProbe(
        options, device, encoder, maps, predictor,
        DepthLoader(train, shuffled, scale=crops.scale, ratio=crops.ratio, **how),
        DepthLoader(val, in_turn, eval_crop=recipe.centre, **how),
        Augment(crops, options.seed), Augment(recipe.for_evaluation(), options.seed),
    ), note  # fmt: skip


def in_words(errors: dict[str, float]) -> str:
    return (
        f"MSE {errors['depth_mse']:.4f} m²  RMSE {errors['depth_rmse']:.3f} m  AbsRel {errors['depth_abs_rel']:.3f}"
        f"  δ<1.25 {errors['depth_delta1']:.1f}%"
    )


if __name__ == "__main__":
    end_with(main)
