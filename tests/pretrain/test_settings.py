"""The settings of solo-learn's MoCo v2+ and of BYOL through main_moco.py.

What each step is given; with every optimiser, a run that is cut inside an epoch.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from moco.data.augment.recipes import find_recipe
from moco.pretrain.__main__ import main, make_loader
from moco.pretrain.options import parse_pretrain
from moco.run import checkpoint
from moco.run.log import read_log
from moco.schedules import key_momentum, learning_rate_by_step
from moco.world import World
from tests.pretrain.test_state import same_bits

COMMAND = shlex.split(
    "--dataset digits -a smallcnn --image-size 8 -b 200 --epochs 2 --seed 0 -j 1 -p 1 --moco-dim 16 --moco-k 500"
    " --bn local --eval-freq 0 --no-tensorboard --device cpu --save-every 5 --symmetric --queue-per-view"
    " --lr-per-step --cos --warmup-epochs 1 --moco-mlp-layers 2 --moco-mlp-dim 24 --moco-m 0:0.9,2:0.99 --moco-m-cos"
)
STEPS = 7  # of an epoch
OPTIMIZERS = {"sgd": "--lr 0.05", "lars": "--lr 2 --moco-mlp-bn", "adamw": "--lr 0.001"}


def train(folder: Path, *more: str) -> list[dict[str, float]]:
    assert main([*COMMAND, "--output-dir", str(folder), *more]) == 0
    return [record for record in read_log(folder / "log.jsonl") if record["kind"] == "train"]


def test_the_smallest_crop_is_the_option_s() -> None:
    for words, scale in (([], (0.4, 1.0)), (["--crop-min", "0.7"], (0.7, 1.0)), (["--crop-min", "1"], (1.0, 1.0))):
        o = parse_pretrain([*COMMAND, *words])
        loader = make_loader(o, o.open("train"), World(), 0, torch.device("cpu"))
        assert loader.scale == scale
        assert find_recipe("digits").scale == (0.4, 1.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_cut_inside_an_epoch_ends_with_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    words = ["--optimizer", optimizer, *OPTIMIZERS[optimizer].split()]
    log = train(tmp_path / "whole", *words)
    lr = float(words[3])
    places = [step / STEPS for step in range(2 * STEPS)]
    assert [r["lr"] for r in log] == pytest.approx([learning_rate_by_step(at, lr, 2, (), True, 1) for at in places])
    assert [r["moco_m"] for r in log] == pytest.approx([key_momentum("0:0.9,2:0.99", at, 2, True) for at in places])

    inside = next(path for path in checkpoint.checkpoints(tmp_path / "whole") if checkpoint.position(path) == (1, 3))
    resumed = train(tmp_path / "cut", *words, "--resume", str(inside))
    whole, cut = (checkpoint.load(tmp_path / name / "checkpoint_0001.pth.tar") for name in ("whole", "cut"))
    assert same_bits(whole["state_dict"], cut["state_dict"])
    assert whole["moco_run"]["queue_state"]["queue_of_view_0"].equal(cut["moco_run"]["queue_state"]["queue_of_view_0"])
    for state, other in zip(whole["optimizer"]["state"].values(), cut["optimizer"]["state"].values(), strict=True):
        assert same_bits(state, other)
    assert [r["loss"] for r in resumed] == [r["loss"] for r in log[10:]] and len(resumed) == 4
