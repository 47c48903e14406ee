"""Saves and restores the state of a run.

Functions of (seed, epoch, step) are not saved: sample order, crops, augmentations, shuffles, learning rate. Everything
else is in the checkpoint, in MoCo's layout (He et al.'s `epoch`, `arch`, `state_dict`, `optimizer`). This project's
additions are under the one key `moco_run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco import distributed
from moco.builder import MoCo
from moco.encoders.files import STATELESS
from moco.errors import InputError, flag
from moco.pretrain.optimiser import load_state
from moco.pretrain.options import PretrainOptions
from moco.pretrain.step import TrainingStep
from moco.run.meter import Meter
from moco.run.options import as_dict, result_options
from moco.run.provenance import git_state
from moco.run.resume import Position as Position, find as find, restore_meters, seed as seed

FORMAT = 1
_V3_NAMES = {"encoder_q": "base_encoder", "encoder_k": "momentum_encoder"}  # ours -> moco-v3's
_NO_QUEUE = ("queue", "queue_ptr")  # without a queue they have no columns


def snapshot(
    step: TrainingStep, meters: Sequence[Meter], position: Position, options: PretrainOptions
) -> dict[str, Any]:
    """Returns the checkpoint's contents. All ranks must call it.

    Each rank adds its own random generators and running means.
    """
    of_ranks = distributed.gather_objects({"random": _random_states(), "meters": [meter.state() for meter in meters]})
    return {
        "epoch": position.epoch,
        "arch": options.arch,
        "state_dict": {f"module.{name}": value for name, value in _named_for_files(step.moco).items()},
        "optimizer": step.optimizer.state_dict(),
        "moco_run": {
            "format": FORMAT,
            "step_in_epoch": position.step,
            "global_step": position.global_step,
            "queue_state": step.moco.queue_state(),
            **step.guard.state(),
            "loss": step.loss_state.state_dict(),
            **({"online_probe": step.online_probe.state_dict()} if step.online_probe is not None else {}),
            "ranks": of_ranks,
            "options": as_dict(options),
            "git": git_state(),
        },
    }


def _named_for_files(model: MoCo) -> dict[str, Tensor]:
    """Returns the model's state under MoCo's names.

    Without a queue, when the batch's keys are the negatives, the names are moco-v3's. So the scripts of either project
    find the names that they read.
    """
    state = model.state_dict()
    if model.keys == "queue":
        return state
    renamed = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part not in _NO_QUEUE:
            renamed[f"{_V3_NAMES.get(part, part)}.{rest}"] = value
    return renamed


def _named_for_model(weights: dict[str, Tensor], model: MoCo) -> dict[str, Tensor]:
    """Inverts `_named_for_files`; names of another layout stay, to be reported."""
    if model.keys == "queue":
        return weights
    ours = {theirs: name for name, theirs in _V3_NAMES.items()}
    parts = ((*name.partition("."), value) for name, value in weights.items())
    renamed = {f"{ours.get(part, part)}{dot}{rest}": value for part, dot, rest, value in parts}
    return renamed | {name: model.state_dict()[name] for name in _NO_QUEUE}


def _random_states() -> dict[str, Tensor]:
    """Returns the states of torch's generators.

    Encoders with dropout or stochastic depth use them, and nothing else does.
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore(
    state: dict[str, Any],
    path: Path,
    step: TrainingStep,
    meters: Sequence[Meter],
    options: PretrainOptions,
) -> tuple[Position, list[str]]:
    """Restores a checkpoint; returns its position, and notes for the log.

    A checkpoint of facebookresearch/moco is resumed at its next epoch, with the state that it holds. InputError if the
    file does not fit this run.
    """
    weights, notes = _fitting_weights(state, path, step, options)
    run = state.get("moco_run")
    changed = _changed_options(run["options"], options) if run else {}
    if run and run["step_in_epoch"]:
        _check_same_batches(path, changed)

    step.moco.load_state_dict(weights)
    if "optimizer" in state:
        try:
            load_state(step.optimizer, state["optimizer"])
        except ValueError as error:
            raise InputError(f"the optimiser's state in {path} does not fit this model: {error}") from error
    else:
        notes.append(f"{path} holds no optimiser state: momentum starts from zero")
    of_probe = (run or {}).get("online_probe")
    if step.online_probe is not None:
        if of_probe is None:
            notes.append(f"{path} holds no online classifier: that of --online-probe starts afresh")
        else:
            step.online_probe.load_state_dict(of_probe)
    if run is None:
        notes.append(
            f"{path} was not written by this project: the queue's labels and the random generators start afresh"
        )
        return Position(epoch=int(state["epoch"])), notes
    step.moco.load_queue_state(run["queue_state"])
    step.guard.load_state(run)
    step.loss_state.load_state_dict(run.get("loss", {}))
    restore_meters(meters, [old["meters"] for old in run["ranks"]], step.device)
    notes += _restore_generators(path, [old["random"] for old in run["ranks"]])
    notes += [f"{flag(name)} was {before} and is {now} from here on" for name, (before, now) in changed.items()]
    return Position(int(state["epoch"]), int(run["step_in_epoch"]), int(run["global_step"])), notes


def _fitting_weights(
    state: dict[str, Any], path: Path, step: TrainingStep, options: PretrainOptions
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the checkpoint's weights by the model's names, and notes.

    InputError if they are not this model's.
    """
    if "state_dict" not in state or "epoch" not in state:
        raise InputError(
            f"{path} is not a MoCo run's checkpoint (no 'state_dict' or no 'epoch'); to start from an encoder's weights"
            " pass --init-from"
        )
    arch = state.get("arch", options.arch)
    if arch != options.arch:
        raise InputError(f"{path} holds a {arch}, not a {options.arch}; pass --arch {arch} or another --resume")
    weights = {name.removeprefix("module."): value for name, value in state["state_dict"].items()}
    _check_keys(path, weights, step.moco)
    weights = _named_for_model(weights, step.moco)
    stateless = [name for name in STATELESS if weights.pop(name, None) is not None]
    wanted = step.moco.state_dict()
    if "queue" in weights and weights["queue"].dim() == 2 and weights["queue"].shape != wanted["queue"].shape:
        dim, length = weights["queue"].shape
        raise InputError(f"{path} was trained with --moco-dim {dim} --moco-k {length}; pass the same to resume it")
    run = state.get("moco_run")
    two_queues = step.moco.queue_of_view_0 is not None
    if run and ("queue_of_view_0" in run["queue_state"]) != two_queues:
        how = "one queue for both views: leave out" if two_queues else "a queue for each view: pass"
        raise InputError(f"{path} was trained with {how} --queue-per-view to resume it")
    odd = sorted(
        name
        for name in wanted.keys() | weights.keys()
        if name not in weights or name not in wanted or weights[name].shape != wanted[name].shape
    )
    if odd:
        raise InputError(
            f"{path} does not fit this model (arch, --mlp, --moco-mlp-layers, --predictor?): {len(odd)} entries differ,"
            f" the first is {odd[0]}; to start a new run from its encoder alone pass --init-from"
        )
    return weights, [f"left out {name} of {path}, a buffer that holds no state" for name in stateless]


def _check_keys(path: Path, weights: dict[str, Tensor], model: MoCo) -> None:
    """Raises InputError if the file's negatives have another origin than the model's."""
    from_batch = any(name.startswith("base_encoder.") for name in weights)
    if from_batch != (model.keys == "batch"):
        how = "from the batch: pass" if from_batch else "from a queue: leave out"
        raise InputError(
            f"{path} was trained with keys {how} --keys batch to resume it; to start a new run from its encoder alone"
            " pass --init-from"
        )


def _changed_options(before: dict[str, Any], options: PretrainOptions) -> dict[str, tuple[Any, Any]]:
    """Returns changed options: name -> (value in the checkpoint, value now).

    Only options that change results count.
    """
    now = as_dict(options)
    names = [name for name in result_options(PretrainOptions) if name in before and before[name] != now[name]]
    return {name: (before[name], now[name]) for name in names}


def _check_same_batches(path: Path, changed: dict[str, tuple[Any, Any]]) -> None:
    for name in ("batch_size", "seed"):
        if name in changed:
            raise InputError(
                f"{path} was saved inside an epoch with {flag(name)} {changed[name][0]}; pass the same value to finish"
                " that epoch, or resume from a checkpoint at an epoch's end"
            )


def _restore_generators(path: Path, of_ranks: list[dict[str, Tensor]]) -> list[str]:
    """Restores each rank's own generators.

    On another number of ranks none is restored; then it returns a note.
    """
    if len(of_ranks) != distributed.world_size():
        return [
            f"{path} was written by {len(of_ranks)} ranks, this run has {distributed.world_size()}: the samples"
            " are the same, but sums over ranks are rounded differently from here on"
        ]
    own_states = of_ranks[distributed.rank()]
    torch.set_rng_state(own_states["cpu"])
    if "cuda" in own_states and torch.cuda.is_available():
        torch.cuda.set_rng_state(own_states["cuda"])
    return []
