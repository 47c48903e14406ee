"""Restores a run: its checkpoint, seed, position and running means."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moco import distributed
from moco.errors import InputError
from moco.run import checkpoint
from moco.run.files import write_json
from moco.run.log import RunLog
from moco.run.meter import Meter
from moco.run.options import as_dict
from moco.run.provenance import git_state, machine


@dataclass
class Position:
    """Marks a position in a run: `step` optimiser steps into 0-based `epoch`."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0


def find(resume: str | None, folder: str | Path) -> tuple[Path | None, list[str]]:
    """Returns the file that `--resume` means, and notes for the log.

    'auto' with nothing to resume is a fresh start.
    """
    if resume is None:
        if checkpoint.checkpoints(folder):
            raise InputError(
                f"{folder} already holds a run; pass --resume auto to go on with it, or another --output-dir"
            )
        return None, []
    if resume != "auto":
        return Path(resume), []
    path, skipped = checkpoint.latest(folder)
    notes = [f"skipped {bad}: {reason}" for bad, reason in skipped]
    return path, notes + [f"resuming from {path}" if path else f"nothing to resume in {folder}; starting afresh"]


def seed(wish: int | None, state: dict[str, Any] | None) -> int:
    """Returns the run's seed.

    It is the one asked for, else that of the resumed run, else one drawn from the system.
    """
    if wish is not None:
        return wish
    run = (state or {}).get("moco_run")
    return int(run["options"]["seed"]) if run else random.SystemRandom().randrange(2**31)


def restore_meters(meters: Sequence[Meter], of_ranks: list[list[dict[str, Any]]], device: torch.device) -> None:
    """Gives each rank its own sums.

    On another number of ranks the old ranks' sums are distributed, so that none is lost.
    """
    for meter, old in zip(meters, zip(*of_ranks, strict=True), strict=True):
        mine = old[distributed.rank() :: distributed.world_size()]
        sums = {name: torch.zeros_like(total) for name, total in old[0]["sums"].items()}
        for state in mine:
            sums = {name: state["sums"][name] + total for name, total in sums.items()}
        meter.load({"sums": sums, "samples": sum(state["samples"] for state in mine)}, device)


def begin_log(
    log: RunLog, position: Position, options: Any, device: torch.device, notes: Sequence[str], about: Sequence[str]
) -> None:
    """Opens the log of a run at `position`, and writes options.json.

    Later checkpoints are set aside, and later records are dropped. notes: what happened so far. about: lines about data
    and settings, printed after the notes. Rank 0 must hold the folder's lock.
    """
    notes = list(notes)
    if distributed.rank() == 0:
        aside = checkpoint.set_aside(log.folder, after=(position.epoch, position.step))
        notes += [f"set aside {old.name}: this run goes on from an earlier step" for old in aside]
    log.cut_back(position.global_step)
    begin = {
        "options": as_dict(options),
        "world_size": distributed.world_size(),
        "git": git_state(),
        "machine": machine(device),
    }
    log.start(begin, epoch=position.epoch, global_step=position.global_step)
    for line in (*notes, *about):
        log.say(line)
    if distributed.rank() == 0:
        write_json(log.folder / "options.json", as_dict(options))
