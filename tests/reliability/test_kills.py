"""kill -9 at random moments: the run that goes on with --resume auto ends as if nothing had happened, to the bit.

Each configuration is run once undisturbed, then again with its processes killed at places drawn from a seeded
generator, until it ends. What must be equal: every tensor and number of the last checkpoint (weights of both encoders,
queue, pointer, labels, optimiser, scaler, random generators) and every logged loss. MOCO_SOAK=n makes n times as many
chains, with other seeds (`make soak`).
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.conftest import Tally
from tests.reliability.pairwise import pairs, pairwise
from tests.reliability.runs import Fault, Launcher, assert_same_run, fault

SETTINGS: dict[str, list[Any]] = {
    "world": [1, 2],
    "data": ["digits", "folder", "beton"],
    "loss": ["infonce", "align-uniform", "supcon --symmetric --moco-t 0:0.5,1:0.2"],
    "bn": ["shuffle", "split", "local"],
    "accum": [1, 2],
    "amp": ["off", "fp16", "bf16"],
}
CONFIGURATIONS = pairwise(SETTINGS)
KILLS = 3  # of each chain
SOAK = int(os.environ.get("MOCO_SOAK", "1"))

# Where a process can be struck, and the latest call of it that is sure to come before the end of a run of 12 steps.
PLACES: list[tuple[str, int]] = [
    ("moco.pretrain.step:TrainingStep.__call__", 5),
    ("moco.builder:MoCo.update_key_encoder", 5),
    ("moco.builder:MoCo.forward", 5),
    ("moco.pretrain.optimiser:GuardedOptimizer.step", 5),
    ("moco.builder:MoCo.enqueue", 5),
    ("moco.data.sampler:Sampler.batch", 5),
    ("moco.data.loader:Loader.cut", 20),
    ("moco.run.log:RunLog._write", 5),
    ("moco.pretrain.state:snapshot", 3),
    ("moco.run.saver:host_copy", 3),
    ("moco.run.saver:save", 3),
    ("moco.run.checksum:SummingWriter.write", 300),
    ("os:fsync", 6),
    ("os:replace", 4),
    ("moco.run.lock:RunLock.acquire", 1),
    ("moco.run.log:RunLog.cut_back", 1),
]
ONLY_RANK_0 = ("moco.run.log", "moco.run.saver", "moco.run.checksum", "os:", "moco.run.lock")


def name_of(configuration: dict[str, Any]) -> str:
    return "-".join(str(value) for value in configuration.values())


def arguments(configuration: dict[str, Any], images: Path, beton: Path | None) -> list[str]:
    data = {
        "digits": [
            "--dataset",
            "digits",
            "--image-size",
            "8",
            "-b",
            "120",
            "--epochs",
            "1",
            "--eval-freq",
            "0",
        ],  # 12 steps
        "folder": [str(images), "--image-size", "16", "-b", "8", "--epochs", "2", "--eval-freq", "1"],  # 2 x 6 steps
        "beton": [str(beton), "--image-size", "16", "-b", "8", "--epochs", "2", "--eval-freq", "2"],
    }[configuration["data"]]
    group = "--bn-group-size 4" if configuration["bn"] == "split" else ""
    given = f"""-a smallcnn --moco-k 20 --moco-dim 8 --seed 3 --deterministic -p 2 -j 1 --save-every 2
        --keep-last 2 --no-tensorboard {group} --max-bad-steps 12 --loss {configuration["loss"]}
        --bn {configuration["bn"]} --accum-steps {configuration["accum"]} --amp {configuration["amp"]}"""
    return [*data, *given.split()]


def draw_fault(dice: random.Random, world: int) -> dict[int, list[Fault]]:
    place, most = dice.choice(PLACES)
    rank = 0 if place.startswith(ONLY_RANK_0) else dice.randrange(world)
    return {rank: [fault(place, dice.randint(1, most), "kill", after=dice.random() < 0.5)]}


@pytest.fixture(scope="module")
def references() -> dict[str, Path]:
    """Folders of the undisturbed runs, by configuration."""
    return {}


def test_every_pair_of_settings_is_covered() -> None:
    covered = set().union(*(pairs(row) for row in CONFIGURATIONS))
    for (a, values), (b, others) in [(x, y) for x in SETTINGS.items() for y in SETTINGS.items() if x[0] < y[0]]:
        assert {((a, v), (b, o)) for v in values for o in others} <= covered
    assert len(CONFIGURATIONS) * KILLS >= 25


@pytest.mark.parametrize("chain", range(SOAK))
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=name_of)
def test_killed_and_resumed_equals_undisturbed(
    configuration: dict[str, Any],
    chain: int,
    launcher: Launcher,
    tally: Tally,
    references: dict[str, Path],
    request: pytest.FixtureRequest,
    images: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    beton = request.getfixturevalue("beton") if configuration["data"] == "beton" else None
    argv, world, name = arguments(configuration, images, beton), configuration["world"], name_of(configuration)
    if name not in references:
        folder = tmp_path_factory.mktemp(name) / "undisturbed"
        ended = launcher.run(argv, folder, world=world)
        assert ended.codes == [0] * world, ended.output
        references[name] = folder
    folder = references[name].parent / f"killed{chain}"
    dice = random.Random(f"{name} {chain}")
    history: list[Any] = []
    with tally("kill") as attempt:
        attempt.times = 0
        while attempt.times < KILLS:
            faults = draw_fault(dice, world)
            ended = launcher.run([*argv, "--resume", "auto"], folder, world=world, faults=faults, grace=0)
            history.append((faults, ended.codes))
            if ended.codes == [0] * world:
                break  # the fault's turn did not come: this run is done
            assert -9 in ended.codes, ended.output
            attempt.times += 1
        else:
            ended = launcher.run([*argv, "--resume", "auto"], folder, world=world)
            assert ended.codes == [0] * world, (history, ended.output)
        assert_same_run(folder, references[name])
    assert attempt.times, history
