"""Ranks that die, hang or go wrong: the others end and say which it was, and a restart goes on from the last save."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moco.errors import EXIT_INPUT, EXIT_NUMERICS, EXIT_RANK
from moco.run.checkpoint import checkpoints, load
from tests.reliability.conftest import Tally
from tests.reliability.runs import (
    HERE,
    ROOT,
    Launcher,
    assert_same_run,
    differences,
    environment,
    fault,
    final_checkpoint,
)

STEP = "moco.pretrain.step:TrainingStep.__call__"


SETTINGS = """-a smallcnn --image-size 16 -b 8 --epochs 2 --moco-k 20 --moco-dim 8 --seed 5 -p 2 -j 1
    --deterministic --no-tensorboard --eval-freq 0 --loss align-uniform
    --save-every 2"""


def arguments(images: Path) -> list[str]:
    return [str(images), *SETTINGS.split()]


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "undisturbed"
    ended = launcher.run(arguments(images), folder, world=2)
    assert not any(ended.codes), ended.output
    return folder


def goes_on(launcher: Launcher, images: Path, folder: Path, undisturbed: Path) -> None:
    ended = launcher.run([*arguments(images), "--resume", "auto"], folder, world=2)
    assert not any(ended.codes), ended.output
    assert_same_run(folder, undisturbed)


def torchrun(*more: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *more]


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_all_after_kill_9_of_one(
    rank: int, images: Path, undisturbed: Path, tally: Tally, tmp_path: Path
) -> None:
    """The real torchrun. Rank 0's death also leaves the folder's lock behind."""
    faults = {rank: [fault("moco.builder:MoCo.forward", 5, "kill")]}
    run = [str(HERE / "launcher.py"), *arguments(images), "--resume", "auto", "--output-dir", str(tmp_path / "run")]
    with tally("torchrun"):
        ended = subprocess.run(
            [*torchrun("--max-restarts=3"), *run],
            env={**environment(), "MOCO_FAULTS": json.dumps(faults)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "resuming from" in ended.stdout
        assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("rank", [0, 1])
def test_hung_rank_is_named(
    rank: int, launcher: Launcher, images: Path, undisturbed: Path, tally: Tally, tmp_path: Path
) -> None:
    """SIGSTOP: the process is there and does nothing. Without the time limit the other would wait for ever."""
    faults = {rank: [fault(STEP, 4, "stop")]}
    other = 1 - rank
    with tally("hang"):
        argv = [*arguments(images), "--rank-timeout", "4"]
        ended = launcher.run(argv, tmp_path / "run", world=2, faults=faults, grace=0)
        assert ended.codes[other] == EXIT_RANK, ended.output
        assert ended.ended_by_us == [rank]
        message = rf"error \(seen by rank {other}\): rank {rank} does not answer .*--resume auto"
        assert re.search(message, ended.outputs[other]), ended.output
        goes_on(launcher, images, tmp_path / "run", undisturbed)


def test_rank_that_ends_by_itself_is_named(launcher: Launcher, images: Path, tmp_path: Path, tally: Tally) -> None:
    faults = {1: [fault(STEP, 4, "exit_now")]}
    with tally("rank ends"):
        ended = launcher.run(arguments(images), tmp_path / "run", world=2, faults=faults)
        assert ended.codes == [EXIT_RANK, 1] and not ended.ended_by_us, ended.output
        assert "rank 1 does not answer" in ended.outputs[0]


def test_the_others_learn_why_a_rank_gave_up(launcher: Launcher, images: Path, tmp_path: Path, tally: Tally) -> None:
    """Rank 0 cannot save: the note it leaves says so, wherever the run's output of other ranks is looked at."""
    faults = {0: [fault("moco.run.saver:save", 2, "fill_disk")]}
    with tally("rank ends"):
        ended = launcher.run(arguments(images), tmp_path / "run", world=2, faults=faults)
        assert ended.codes[0] == EXIT_INPUT and ended.codes[1] == EXIT_RANK, ended.output
        assert "cannot write" in ended.outputs[0]
        assert not ended.ended_by_us


@pytest.mark.parametrize(("what", "name"), [("flip_weight", r"encoder_q\.\S+"), ("flip_queue", "queue")])
def test_ranks_that_differ_are_found(
    what: str, name: str, launcher: Launcher, images: Path, undisturbed: Path, tally: Tally, tmp_path: Path
) -> None:
    """One bit changes on one rank. The next printed line finds it, and what was saved before is good."""
    faults = {1: [fault(STEP, 8, what)]}
    with tally("ranks differ"):
        ended = launcher.run(arguments(images), tmp_path / "run", world=2, faults=faults)
        assert ended.codes == [EXIT_NUMERICS] * 2, ended.output
        found = re.search(rf"error: the ranks differ in {name}.* after step (\d+) and by step (\d+)", ended.outputs[0])
        assert found, ended.output
        assert (int(found[1]), int(found[2])) == (6, 8)
        assert load(checkpoints(tmp_path / "run")[-1])["moco_run"]["global_step"] <= 6
        goes_on(launcher, images, tmp_path / "run", undisturbed)


def test_saves_by_the_clock_are_made_by_all_ranks_together(
    launcher: Launcher, images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Each rank has a clock of its own; one that saved alone would wait for ever for what the others add."""
    argv = [*arguments(images), "--save-every", "0.0005m", "--keep-last", "20"]
    ended = launcher.run(argv, tmp_path / "run", world=2)
    assert not any(ended.codes), ended.output
    assert len(checkpoints(tmp_path / "run")) > 2
    different = differences(final_checkpoint(tmp_path / "run"), final_checkpoint(undisturbed))
    assert {line.split(":")[0] for line in different} <= {f".moco_run.options.{n}" for n in ("save_every", "keep_last")}
