"""Pretrains with momentum contrast.

    torchrun --nproc_per_node=8 main_moco.py --mlp --aug-plus --cos --moco-t 0.2 /data/imagenet  # MoCo v2
    torchrun --nproc_per_node=8 main_moco.py --loss align-uniform imagenet100.beton  # another loss, another loader
    python main_moco.py --dataset digits -a smallcnn --resume auto                   # one process, any device

`train` builds and resumes; the loop is moco/pretrain/loop.py, one step moco/pretrain/step.py, the model
moco/builder.py, the losses moco/losses/, and what a checkpoint holds moco/pretrain/state.py.
Exit codes (moco/errors.py): 0 done, 2 bad input, 3 numbers gone wrong, 75 preempted and saved. After 75 start the same
command again with --resume auto.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NoReturn

import torch

from moco import distributed
from moco.builder import MoCo, compile_encoders
from moco.commands import end_with, run_command
from moco.data.augment import Augment
from moco.data.crops import multi_crop
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import Source
from moco.distributed.global_batch import GlobalBatch
from moco.distributed.session import pick_device
from moco.encoders import build_encoder, check_image_size, draw_weights, freeze_patches
from moco.encoders.files import load_trunk, read_encoder
from moco.errors import EXIT_OK, InputError
from moco.evaluate.online import OnlineEvaluator
from moco.losses.table import check_labels, make_loss
from moco.pretrain import state as resume
from moco.pretrain.heads import predictor_of, projector_of
from moco.pretrain.hints import channels_not_rgb, collapse_ahead, first_losses, next_command
from moco.pretrain.loop import Training
from moco.pretrain.loss_state import LossState
from moco.pretrain.online_probe import OnlineProbe
from moco.pretrain.optimiser import make_optimizer
from moco.pretrain.options import ResolvedPretrainOptions, parse_pretrain
from moco.pretrain.reference import ReferenceMoCo
from moco.pretrain.step import TrainingStep
from moco.run import checkpoint
from moco.run.arithmetic import check_deterministic, set_arithmetic
from moco.run.lock import only_run_in
from moco.run.log import RunLog
from moco.run.meter import Meter
from moco.run.options import as_json
from moco.run.preemption import Preemption
from moco.run.resume import begin_log
from moco.schedules import key_momentum
from moco.timing import Profile
from moco.world import World


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        world = World.launched()
        options = parse_pretrain(argv, world.size)
        if options.dry_run:
            print(as_json(options))
            return EXIT_OK
        device = pick_device(options.device, world)
        with distributed.session(world, device, options.rank_timeout), Preemption() as preemption:
            return train(options, world, device, preemption)

    return run_command(run)


def train(options: ResolvedPretrainOptions, world: World, device: torch.device, preemption: Preemption) -> int:
    folder = Path(options.output_dir)

    # The checkpoint to resume from. One that cannot be used ends the run here, before anything is built.
    path, notes = distributed.on_rank_0(lambda: resume.find(options.resume, folder))
    saved = checkpoint.load(path) if path else None
    seed = distributed.broadcast_object(resume.seed(options.seed, saved))
    options = dataclasses.replace(options, seed=seed)
    torch.manual_seed(seed)
    kernels = set_arithmetic(options.deterministic, device)

    # Data: uint8 crops from threads; everything photometric happens on the device.
    source = options.open("train", labels_required=False)
    check_labels(options.loss, source.labels)
    if options.online_probe and not (source.labels >= 0).any():
        raise InputError("--online-probe needs labels, and these images have none: leave it out")
    loader = make_loader(options, source, world, seed, device)
    evaluate = online_evaluator(options, source, device)
    if evaluate is None and options.eval_freq is None:
        notes.append("no val split: training goes without online evaluation")

    preemption.steps_follow()  # the images are listed; from here on a signal waits for a step

    # Model, loss, optimiser: new, then restored from the checkpoint.
    encoder, origin = make_encoder(options, device, fresh=saved is None)
    step = make_step(options, encoder, seed, device, len(source.classes))
    notes += origin
    position = resume.Position(epoch=options.start_epoch)
    meters = (Meter(), Meter())
    if saved is not None and path is not None:
        position, more = resume.restore(saved, path, step, meters, options)
        notes += more
    del saved

    log = RunLog(folder, rank=world.rank, tensorboard=options.tensorboard, wandb=options.wandb)
    with only_run_in(folder), log:
        about = (
            f"{len(source)} images, {len(loader)} steps of {options.batch_size} an epoch, on {world.size} x"
            f" {device.type} with {loader.workers} decoding threads each; --bn {options.bn}, --seed {seed}; output in"
            f" {folder}"
        )
        hints = (*channels_not_rgb(options), *collapse_ahead(options), *first_losses(options, position.global_step))
        lines = (*source.notes, kernels, about, *hints)
        begin_log(log, position, options, device, notes, lines)
        with Profile(folder, device, options.profile and world.rank == 0, log.say) as profile:
            training = Training(options, loader, step, meters, position, evaluate, log, preemption, profile)
            code = training.run()
        if code == EXIT_OK:
            log.say(next_command(options))
        return code


def make_loader(
    options: ResolvedPretrainOptions, source: Source, world: World, seed: int, device: torch.device
) -> Loader:
    """Makes the loader of this rank's uint8 crops."""
    recipe = options.find_recipe(options.recipe, options.crop_min)
    crops = multi_crop(options.crops) if options.crops else None
    if options.no_drop_last:
        check_last_batch(len(source), options.batch_size, world.size * options.accum_steps)
    sampler = Sampler(
        len(source),
        options.batch_size,
        seed,
        drop_last=not options.no_drop_last,
        rank=world.rank,
        world_size=world.size,
    )
    return Loader(
        source,
        sampler,
        size=options.image_size,
        scale=crops.scale if crops else recipe.scale,
        small=crops.small if crops else None,
        ratio=recipe.ratio,
        workers=options.workers,
        device=device,
        seed=seed,
        skip_bad_images=options.skip_bad_images,
    )


def check_last_batch(images: int, batch_size: int, parts: int) -> None:
    """Raises InputError for a last batch too small for BatchNorm."""
    rest = images % batch_size
    if 0 < rest < 2 * parts:
        raise InputError(
            f"{images} images leave {rest} for the last batch of an epoch, fewer than two for each rank and"
            " accumulation step: change --batch-size, or leave out --no-drop-last"
        )


def make_encoder(
    options: ResolvedPretrainOptions, device: torch.device, fresh: bool
) -> tuple[torch.nn.Module, list[str]]:
    """Builds the encoder on the CPU, with notes for the log.

    fresh: no checkpoint follows, so --init-from is read.
    """
    encoder = build_encoder(
        options.arch,
        options.moco_dim,
        options.mlp,
        options.image_size,
        options.arch_arg,
        projector_of(options),
        options.channels,
    )
    if options.crops:
        check_image_size(encoder, options.arch, multi_crop(options.crops).small.size, "--crops")
    if options.stop_grad_conv1:
        freeze_patches(encoder, options.arch)
    check_deterministic(encoder, options.arch, options.deterministic, device)
    if options.init_std is not None:
        draw_weights(encoder, options.init_std)
    if not options.init_from or not fresh:
        return encoder, []
    file = read_encoder(options.init_from)
    loaded = load_trunk(encoder, file)
    return encoder, [f"{file.path}: {file.layout}, {loaded}; projection head and queue start afresh"]


def make_step(
    options: ResolvedPretrainOptions, encoder: torch.nn.Module, seed: int, device: torch.device, classes: int = 0
) -> TrainingStep:
    """Builds model, loss, optimiser and augmentations, on the device.

    classes: of the labels, for --online-probe.
    """
    channels_last = device.type == "cuda" if options.channels_last is None else options.channels_last
    if channels_last:
        encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = (ReferenceMoCo if options.reference_step else MoCo)(
        encoder,
        dim=options.moco_dim,
        K=options.moco_k,
        m=key_momentum(options.moco_m, 0, options.epochs, options.moco_m_cos),  # the loop sets it for each step
        bn=options.bn,
        bn_group_size=options.bn_group_size,
        seed=seed,
        device=device,
        queue_per_view=options.queue_per_view,
        keys=options.keys,
        predictor=predictor_of(options, encoder),
    )
    if options.compile:
        compile_encoders(model)
    across = GlobalBatch()
    loss = make_loss(options, across)
    if isinstance(loss, torch.nn.Module):
        loss.to(device)
    return TrainingStep(
        distributed.data_parallel(model, device),
        loss,
        make_optimizer(model, LossState(loss).parameters, options),
        Augment(options.find_recipe(options.recipe), seed, compile=device.type == "cuda"),
        across,
        accum_steps=options.accum_steps,
        amp=options.amp,
        grad_clip=options.grad_clip,
        channels_last=channels_last,
        go_on=options.max_bad_steps > 0,
        symmetric=options.symmetric,
        online_probe=OnlineProbe(model.encoder_q, classes) if options.online_probe else None,
    )


def online_evaluator(options: ResolvedPretrainOptions, train: Source, device: torch.device) -> OnlineEvaluator | None:
    """Makes the online evaluation, or None. InputError as `open_split`.

    None if --eval-freq is 0, or is not given and there is no val split.
    """
    default = 10 if options.has("val") else 0
    every = default if options.eval_freq is None else options.eval_freq
    if every == 0:
        return None
    return OnlineEvaluator(
        train,
        options.open("val", labels_required=False),
        options,
        device,
        recipe=options.recipe,
        crop_min=options.crop_min,
        size=options.image_size,
        seed=options.seed or 0,
        k=options.knn_k,
        t=options.knn_t,
        every=every,
    )


def script() -> NoReturn:
    """Runs the console script."""
    end_with(main)


if __name__ == "__main__":
    end_with(main)
