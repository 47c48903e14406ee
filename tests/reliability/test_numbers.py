"""Numbers gone wrong in a real run: nothing bad is applied, the batch is written down, collapse is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from moco.data.sampler import Sampler
from moco.errors import EXIT_NUMERICS
from moco.randomness import Purpose, stream_key
from moco.run.checkpoint import checkpoints, load
from moco.run.log import read_log
from tests.reliability.conftest import Tally
from tests.reliability.runs import Launcher, assert_same_run, differences, fault, final_checkpoint, on_all

SETTINGS = """-a smallcnn --image-size 16 -b 8 --epochs 2 --moco-k 20 --moco-dim 8 --seed 5 -p 2 -j 1 --deterministic
    --no-tensorboard --eval-freq 0 --save-every 2 --bn-group-size 4"""

GUARD = "moco.pretrain.optimiser:GuardedOptimizer.step"


def finite(folder: Path) -> bool:
    """Whether everything in all checkpoints is."""

    def bad(value: object) -> bool:
        if isinstance(value, dict):
            return any(map(bad, value.values()))
        if isinstance(value, (list, tuple)):
            return any(map(bad, value))
        return isinstance(value, torch.Tensor) and not bool(value.isfinite().all())

    return not any(bad(load(path)) for path in checkpoints(folder))


@pytest.mark.parametrize("world", [1, 2])
def test_stops_at_a_gradient_that_is_not_finite(
    world: int, launcher: Launcher, images: Path, tally: Tally, tmp_path: Path
) -> None:
    argv = [str(images), *SETTINGS.split()]
    faults = {rank: [fault(GUARD, 9, "spoil_gradient")] for rank in range(world)}
    with tally("not finite"):
        ended = launcher.run(argv, tmp_path / "run", world=world, faults=faults)
        assert ended.codes == [EXIT_NUMERICS] * world, ended.output
        assert "the gradient of step 9 is not finite" in ended.outputs[0]
        assert "error:" not in "".join(ended.outputs[1:])
        assert finite(tmp_path / "run")
        assert checkpoints(tmp_path / "run")[-1].name == "checkpoint_0001_000002.pth.tar"

        record = json.loads((tmp_path / "run" / "bad_step_00000009.json").read_text())
        assert (record["epoch"], record["step"], record["seed"]) == (1, 2, 5)
        np.testing.assert_array_equal(record["indices"], Sampler(48, 8, 5).global_batch(1, 2))
        assert int(record["random_streams_of_views"]["crop"][0], 16) == stream_key(5, 1, Purpose.CROP, 0)
        assert np.isfinite(record["last_finite"]["loss"])

        undisturbed = launcher.run(argv, tmp_path / "undisturbed", world=world)
        again = launcher.run([*argv, "--resume", "auto"], tmp_path / "run", world=world)
        assert not any(undisturbed.codes + again.codes), again.output
        assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_weights_gone_bad_stop_it_too(launcher: Launcher, images: Path, tally: Tally, tmp_path: Path) -> None:
    """A NaN in a weight cannot be undone by leaving out steps: it stops however many are allowed."""
    argv = [str(images), *SETTINGS.split(), "--max-bad-steps", "2"]
    with tally("not finite"):
        faults = {0: [fault("moco.pretrain.step:TrainingStep.__call__", 4, "poison")]}
        ended = launcher.run(argv, tmp_path / "run", faults=faults)
        assert ended.codes == [EXIT_NUMERICS], ended.output
        assert "the gradient of step 6 is not finite" in ended.output


def test_diverging_run_stops(launcher: Launcher, images: Path, tally: Tally, tmp_path: Path) -> None:
    """No fault: a learning rate that sends the weights to infinity."""
    with tally("not finite"):
        ended = launcher.run([str(images), *SETTINGS.split(), "--lr", "1e30"], tmp_path / "run")
        assert ended.codes == [EXIT_NUMERICS], ended.output
        assert re.search(r"error: the gradient of step \d+ is not finite, .* lower --lr", ended.output)
        assert "Traceback" not in ended.output
        assert list((tmp_path / "run").glob("bad_step_*.json"))


@pytest.mark.parametrize("world", [1, 2])
def test_leaves_out_as_many_bad_steps_as_allowed(
    world: int, launcher: Launcher, images: Path, tally: Tally, tmp_path: Path
) -> None:
    """Two of twelve, one of them in each epoch, one after a kill: the count is part of the saved state."""
    argv = [str(images), *SETTINGS.split(), "--max-bad-steps", "2"]
    bad = [fault(GUARD, call, "spoil_gradient") for call in (3, 9)]
    with tally("not finite"):
        ended = launcher.run(argv, tmp_path / "run", world=world, faults=on_all(world, *bad))
        assert not any(ended.codes), ended.output
        warnings = [r["message"] for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "warning"]
        assert re.findall(r"gradient of step (\d+)", " ".join(warnings)) == ["3", "9"]
        assert int(final_checkpoint(tmp_path / "run")["moco_run"]["bad_steps"]) == 2
        assert finite(tmp_path / "run")

        killed = [bad[0], fault("moco.pretrain.step:TrainingStep.__call__", 8, "kill")]
        ended = launcher.run(argv, tmp_path / "cut", world=world, faults=on_all(world, *killed), grace=0)
        assert ended.codes == [-9] * world
        saved = checkpoints(tmp_path / "cut")  # of 6 steps, unless the kill came before that save had ended
        done = load(saved[-1])["moco_run"]["global_step"] if saved else 0
        rest = [n - done for n in (3, 9) if n > done]
        later = [fault(GUARD, call, "spoil_gradient") for call in rest]
        argv += ["--resume", "auto"]
        ended = launcher.run(argv, tmp_path / "cut", world=world, faults=on_all(world, *later))
        assert not any(ended.codes), ended.output
        assert_same_run(tmp_path / "cut", tmp_path / "run")

    third = [*bad, fault(GUARD, 11, "spoil_gradient")]
    ended = launcher.run(argv, tmp_path / "third", world=world, faults=on_all(world, *third))
    assert ended.codes == [EXIT_NUMERICS] * world


def test_a_step_left_out_is_as_if_its_batch_had_not_moved_the_weights(
    launcher: Launcher, images: Path, tmp_path: Path
) -> None:
    """Against the checkpoint before it: weights, momentum and statistics of the query encoder are the same."""
    argv = [str(images), *SETTINGS.split(), "--max-bad-steps", "1", "--save-every", "1", "--keep-last", "99"]
    faults = {0: [fault(GUARD, 4, "spoil_gradient")]}
    ended = launcher.run(argv, tmp_path / "run", faults=faults)
    assert not any(ended.codes), ended.output
    before, after = (load(tmp_path / "run" / f"checkpoint_0000_{step:06d}.pth.tar") for step in (3, 4))
    moved = differences(before["state_dict"], after["state_dict"]) + differences(
        before["optimizer"], after["optimizer"]
    )
    assert not [line for line in moved if "encoder_q" in line and "tracked" not in line]
    assert not [line for line in moved if "momentum" in line]


def test_collapse_is_warned_about_while_it_happens(
    launcher: Launcher, images: Path, tally: Tally, tmp_path: Path
) -> None:
    """Alignment alone has one solution: all features the same."""
    weights = ["--moco-align-w", "1", "--moco-unif-w", "0", "--moco-contr-w", "0", "--lr", "0.1", "--epochs", "12"]
    with tally("collapse"):
        ended = launcher.run([str(images), *SETTINGS.split(), *weights], tmp_path / "run")
        assert not any(ended.codes), ended.output
        warnings = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "warning"]
        assert warnings and all("nearly one point" in warning["message"] for warning in warnings)
        assert warnings[0]["epoch"] < 11, "too late"
        assert "warning: the features are nearly one point" in ended.output
