"""Going on with another number of ranks: the same samples in the same batches, and a drift that is measured."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

from moco.run.log import read_log
from tests.reliability.conftest import Tally
from tests.reliability.runs import Ended, Launcher, fault, final_checkpoint, on_all

NOTE = fault("moco.pretrain.step:TrainingStep.__call__", 0, "note_batch")
SETTINGS = """--image-size 32 -b 8 --epochs 2 --moco-k 20 --moco-dim 8 --seed 5 -p 1 -j 1 --deterministic
    --no-tensorboard --eval-freq 0 --bn local --lr 0.01"""
# encoder -> how much the losses and the weights (relative to their norm) may drift in 8 steps
LAYERNORM, BATCHNORM = "timm:test_convnext", "smallcnn"
ALLOWED = {LAYERNORM: (1e-4, 1e-5), BATCHNORM: (2.0, 0.2)}


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


@pytest.mark.parametrize(
    ("before", "after", "arch"), [(1, 2, LAYERNORM), (2, 1, LAYERNORM), (2, 3, LAYERNORM), (1, 2, BATCHNORM)]
)
def test_same_samples_on_another_number_of_ranks(
    before: int, after: int, arch: str, launcher: Launcher, images: Path, tally: Tally, tmp_path: Path
) -> None:
    argv = [str(images), "-a", arch, *SETTINGS.split()]
    with tally("another world size"):
        whole = launcher.run(argv, tmp_path / "whole", world=before, faults=on_all(before, NOTE))
        assert not any(whole.codes), whole.output
        stop = fault("moco.pretrain.step:TrainingStep.__call__", 4, "SIGTERM")
        first = launcher.run(argv, tmp_path / "run", world=before, faults=on_all(before, NOTE, stop))
        assert first.codes == [75] * before, first.output
        argv += ["--resume", "auto"]
        second = launcher.run(argv, tmp_path / "run", world=after, faults=on_all(after, NOTE))
        assert not any(second.codes), second.output
        assert f"was written by {before} ranks, this run has {after}" in second.output
        assert batches(first, second) == batches(whole)
        assert len(batches(whole)) == 12

        a, b = (read_log(tmp_path / name / "log.jsonl") for name in ("whole", "run"))
        losses = [[r["loss"] for r in records if r["kind"] == "train"] for records in (a, b)]
        assert losses[0][:4] == losses[1][:4]
        of_loss = max(abs(x - y) for x, y in zip(*losses, strict=True))
        weights = [final_checkpoint(tmp_path / name)["state_dict"] for name in ("whole", "run")]
        names = [name for name in weights[0] if "encoder_q" in name and "running" not in name and "num_" not in name]
        flat = [torch.cat([w[name].flatten() for name in names]) for w in weights]
        of_weights = float((flat[0] - flat[1]).norm() / flat[0].norm())
        norm = "LayerNorm" if arch == LAYERNORM else "BatchNorm over each rank's own part"
        tally.drift(
            f"- {before} → {after} ranks for the last 8 of 12 steps, {norm}: losses (mean {sum(losses[0][4:]) / 8:.2f})"
            f" differ by up to {of_loss:.1e}, weights by {of_weights:.1e} of their norm"
        )
        assert of_loss < ALLOWED[arch][0] and of_weights < ALLOWED[arch][1]
