"""SIGTERM, SIGUSR1, SIGUSR2: saved after that step or the next, exit code 75; the next start ends as if undisturbed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from moco.errors import EXIT_PREEMPTED
from moco.run.checkpoint import checkpoints, load
from tests.reliability.conftest import Tally
from tests.reliability.runs import Fault, Launcher, assert_same_run, fault

SIGNALS = ["SIGTERM", "SIGUSR1", "SIGUSR2"]
# while a batch is awaited, in the middle of a step, while a line is written
MOMENTS = ["moco.data.sampler:Sampler.batch", "moco.builder:MoCo.forward", "moco.run.log:RunLog._write"]


SETTINGS = """-a smallcnn --image-size 16 -b 8 --epochs 2 --moco-k 20 --moco-dim 8 --seed 5 -p 2 -j 1
    --deterministic --no-tensorboard --eval-freq 0 --bn-group-size 4
    --loss align-uniform"""


def arguments(images: Path) -> list[str]:
    return [str(images), *SETTINGS.split()]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def reference(
    request: pytest.FixtureRequest, launcher: Launcher, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp("signals") / "undisturbed"
    ended = launcher.run(arguments(images), folder, world=request.param)
    assert not any(ended.codes), ended.output
    return request.param, folder


def preempt(launcher: Launcher, images: Path, folder: Path, world: int, faults: dict[int, list[Fault]]) -> None:
    """Every rank ends with the code that says "start me again", having saved where it stood."""
    ended = launcher.run([*arguments(images), "--resume", "auto"], folder, world=world, faults=faults)
    assert ended.codes == [EXIT_PREEMPTED] * world, ended.output
    assert "saved after epoch" in ended.outputs[0]
    newest = load(checkpoints(folder)[-1])
    assert newest["moco_run"]["global_step"] == newest["epoch"] * 6 + newest["moco_run"]["step_in_epoch"]
    assert not list(folder.glob(".*")), "a lock or half a file was left"


@pytest.mark.parametrize("name", SIGNALS)
def test_preempted_and_resumed_equals_undisturbed(
    name: str, reference: tuple[int, Path], launcher: Launcher, images: Path, tally: Tally, tmp_path: Path
) -> None:
    """Twice in one run, at random steps; of two ranks one alone gets the signal."""
    world, undisturbed = reference
    dice = random.Random(f"{name} {world}")
    with tally("signal") as attempt:
        attempt.times = 2
        for _ in range(2):
            at = fault(dice.choice(MOMENTS), dice.randint(1, 4 if world == 1 else 3), name, after=dice.random() < 0.5)
            rank = 0 if "RunLog" in at["at"] else dice.randrange(world)
            preempt(launcher, images, tmp_path / "run", world, {rank: [at]})
        ended = launcher.run([*arguments(images), "--resume", "auto"], tmp_path / "run", world=world)
        assert not any(ended.codes), ended.output
        assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("moment", ["moco.pretrain.state:snapshot", "moco.run.saver:save", "os:fsync", "os:replace"])
def test_more_signals_during_the_save_do_no_harm(
    moment: str, reference: tuple[int, Path], launcher: Launcher, images: Path, tally: Tally, tmp_path: Path
) -> None:
    world, undisturbed = reference
    first = fault("moco.pretrain.step:TrainingStep.__call__", 3, "SIGUSR1")
    more = [fault(moment, 1, name) for name in SIGNALS]
    with tally("signal during the save"):
        preempt(launcher, images, tmp_path / "run", world, {0: [first, *more]})
        ended = launcher.run([*arguments(images), "--resume", "auto"], tmp_path / "run", world=world)
        assert not any(ended.codes), ended.output
        assert_same_run(tmp_path / "run", undisturbed)


def test_signal_in_the_last_step_of_an_epoch(
    reference: tuple[int, Path], launcher: Launcher, images: Path, tally: Tally, tmp_path: Path
) -> None:
    """The resumed epoch has no step left, but its end must still be logged."""
    world, undisturbed = reference
    with tally("signal"):
        at = fault("moco.builder:MoCo.enqueue", 6, "SIGTERM", after=True)
        preempt(launcher, images, tmp_path / "run", world, {world - 1: [at]})
        assert checkpoints(tmp_path / "run")[-1].name == "checkpoint_0000_000006.pth.tar"
        ended = launcher.run([*arguments(images), "--resume", "auto"], tmp_path / "run", world=world)
        assert not any(ended.codes), ended.output
        assert_same_run(tmp_path / "run", undisturbed)
