"""Going on with another number of ranks: the same samples in the same batches, and a drift that is measured."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from moco.logs import read_log
from tests.reliability.conftest import Tally
from tests.reliability.runs import Ended, Launcher, fault, final_checkpoint, on_all

NOTE = fault("moco.step:TrainingStep.__call__", 0, "note_batch")
SETTINGS = """-a smallcnn --image-size 16 -b 8 --epochs 2 --moco-k 20 --moco-dim 8 --seed 5 -p 1 -j 1 --deterministic
    --no-tensorboard --eval-freq 0 --loss align-uniform --bn local --lr 0.01"""


def batches(*runs: Ended) -> list[tuple[int, list[int]]]:
    """(epoch, samples of the global batch) of all steps of `runs`, one after the other."""
    found = []
    for run in runs:
        steps: dict[int, list[int]] = defaultdict(list)
        epochs: dict[int, int] = {}
        for output in run.outputs:
            for step, line in enumerate(line for line in output.splitlines() if line.startswith("BATCH ")):
                _, epoch, *indices = line.split()
                steps[step] += map(int, indices)
                epochs[step] = int(epoch)
        found += [(epochs[step], steps[step]) for step in sorted(steps)]
    return found


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_same_samples_on_another_number_of_ranks(
    before: int, after: int, launcher: Launcher, images: Path, tally: Tally, tmp_path: Path
) -> None:
    argv = [str(images), *SETTINGS.split()]
    with tally("another world size"):
        whole = launcher.run(argv, tmp_path / "whole", world=before, faults=on_all(before, NOTE))
        assert not any(whole.codes), whole.output
        stop = fault("moco.step:TrainingStep.__call__", 4, "SIGTERM")
        first = launcher.run(argv, tmp_path / "run", world=before, faults=on_all(before, NOTE, stop))
        assert first.codes == [75] * before, first.output
        argv += ["--resume", "auto"]
        second = launcher.run(argv, tmp_path / "run", world=after, faults=on_all(after, NOTE))
        assert not any(second.codes), second.output
        assert f"was written by {before} ranks, this run has {after}" in second.output
        assert batches(first, second) == batches(whole)
        assert len(batches(whole)) == 12

        # what is measured and printed in docs/reliability.md
        a, b = (read_log(tmp_path / name / "log.jsonl") for name in ("whole", "run"))
        losses = [[r["loss"] for r in records if r["kind"] == "train"] for records in (a, b)]
        assert losses[0][:4] == losses[1][:4]
        drift = max(abs(x - y) for x, y in zip(*losses, strict=True))
        weights = [final_checkpoint(tmp_path / name)["state_dict"] for name in ("whole", "run")]
        names = [name for name in weights[0] if "encoder_q" in name and weights[0][name].is_floating_point()]
        flat = [torch.cat([w[name].flatten() for name in names if "running" not in name]) for w in weights]
        relative = float((flat[0] - flat[1]).norm() / flat[0].norm())
        tally.drift(
            f"- {before} → {after} ranks for the last 8 of 12 steps, BatchNorm statistics of each rank's own: losses"
            f" (mean {sum(losses[0][4:]) / 8:.3f}) differ by up to {drift:.1e}, weights by {relative:.1e} of their norm"
        )
        assert drift < 1.0 and relative < 0.1
