"""Saves and restores a sentence run, in MoCo's checkpoint layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moco import distributed
from moco.errors import InputError, flag
from moco.pretrain.optimiser import load_state
from moco.run.meter import Meter
from moco.run.options import as_dict, result_options
from moco.run.provenance import git_state
from moco.run.resume import Position, restore_meters
from moco.sentences.network import SentencePair
from moco.sentences.options import SentenceOptions
from moco.sentences.step import TrainingStep
from moco.sentences.vocabulary import Vocabulary

ARCH = "quick-thought"
_SHAPE = ("embedding", "hidden")


def snapshot(
    step: TrainingStep,
    meters: list[Meter],
    position: Position,
    options: SentenceOptions,
    vocabulary: Vocabulary,
    text: str,
) -> dict[str, Any]:
    """Returns the contents of a checkpoint. All ranks must call it.

    text: the digest of the corpus.
    """
    return {
        "epoch": position.epoch,
        "arch": ARCH,
        "state_dict": {f"module.{name}": value for name, value in step.pair.state_dict().items()},
        "optimizer": step.optimizer.state_dict(),
        "moco_run": {
            "format": 1,
            "step_in_epoch": position.step,
            "global_step": position.global_step,
            "meters": distributed.gather_objects([meter.state() for meter in meters]),
            "vocabulary": "\n".join(vocabulary.words),
            "text": text,
            "options": as_dict(options),
            "git": git_state(),
        },
    }


def check(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the run's part of a checkpoint.

    InputError for a checkpoint of another program.
    """
    if state.get("arch") != ARCH or "moco_run" not in state:
        raise InputError(f"{path} is no checkpoint of python -m moco.sentences.train; check the path")
    return state["moco_run"]


def vocabulary_of(run: dict[str, Any]) -> Vocabulary:
    return Vocabulary(run["vocabulary"].split("\n")[1:])


def load_weights(pair: SentencePair, state: dict[str, Any], path: Path) -> None:
    """Loads the checkpoint's weights. InputError if their shapes differ."""
    weights = {name.removeprefix("module."): value for name, value in state["state_dict"].items()}
    wanted = pair.state_dict()
    odd = [name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape]
    if odd:
        before = state["moco_run"]["options"]
        shape = " ".join(f"--{name} {before[name]}" for name in _SHAPE)
        words = len(state["moco_run"]["vocabulary"].split("\n"))
        raise InputError(
            f"{path} does not fit this model: {odd[0]} differs; pass {shape} and a vocabulary of {words} words, as in"
            " its training"
        )
    pair.load_state_dict(weights)


def restore(
    state: dict[str, Any], path: Path, step: TrainingStep, meters: list[Meter], options: SentenceOptions
) -> tuple[Position, list[str]]:
    """Restores a run from a checkpoint.

    Returns its position, and notes for the log. InputError if the checkpoint does not fit the model, or its epoch
    cannot be finished with these options.
    """
    run = check(state, path)
    before = run["options"]
    now = as_dict(options)
    changed = [
        name
        for name in result_options(SentenceOptions)
        # the place of the text does not matter, as its digest was compared
        if name in before and before[name] != now[name] and name not in ("data", "vocabulary")
    ]
    cut = [name for name in changed if name in ("batch_size", "seed", "held_out")]
    if run["step_in_epoch"] and cut:
        raise InputError(
            f"{path} was saved inside an epoch with {flag(cut[0])} {before[cut[0]]}; pass the same value to finish that"
            " epoch, or resume from a checkpoint at an epoch's end"
        )
    load_weights(step.pair, state, path)
    load_state(step.optimizer, state["optimizer"])
    restore_meters(meters, run["meters"], step.device)
    notes = [f"{flag(name)} was {before[name]} and is {now[name]} from here on" for name in changed]
    if len(run["meters"]) != distributed.world_size():
        notes.append(
            f"{path} was written by {len(run['meters'])} ranks, this run has {distributed.world_size()}: the sentences"
            " are the same, but sums over ranks are rounded differently from here on"
        )
    return Position(int(state["epoch"]), int(run["step_in_epoch"]), int(run["global_step"])), notes
