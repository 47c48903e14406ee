"""Losses, data sets and networks from outside: trained, killed, resumed, probed, and refused when they do not fit."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.own_dataset import shapes
from moco.data.datasets import has_split, open_split
from moco.data.decode import BadImage
from moco.data.outside import MapStyleSource
from moco.encoders import build_encoder
from moco.encoders.files import EncoderFile, network_of
from moco.errors import InputError
from moco.losses import LossOutput
from moco.losses.table import make_loss, set_epoch
from moco.plugins import find
from moco.pretrain.options import parse_pretrain
from moco.probe.options import parse_lincls
from tests.reliability.runs import Launcher, assert_same_run, fault, final_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SHAPES = "--dataset examples.own_dataset:shapes --dataset-arg images=36 --image-size 16"
LOSS = "--loss examples.own_loss:LearnedTemperature --loss-arg start=0.2"
SMALL = "-a smallcnn --moco-dim 8 --moco-k 21 -b 8 -j 1 --epochs 2 -p 1 --no-tensorboard --seed 1 --save-every 2"


# -- as users run it ---------------------------------------------------------------------------------------------------


def test_own_data_and_own_loss_killed_and_resumed_on_two_ranks(tmp_path: Path) -> None:
    """The loss has a trained parameter: it moves, is equal on both ranks, and is in the checkpoint."""
    argv = shlex.split(f"{SHAPES} {LOSS} {SMALL} --lr 0.5 --eval-freq 1")
    launcher = Launcher()
    try:
        ended = launcher.run(argv, tmp_path / "undisturbed", world=2)
        assert ended.codes == [0, 0], ended.output
        kill = fault("moco.pretrain.optimiser:GuardedOptimizer.step", 6, "kill")
        ended = launcher.run(argv, tmp_path / "killed", world=2, faults={1: [kill]}, grace=0)
        assert -9 in ended.codes, ended.output
        ended = launcher.run([*argv, "--resume", "auto"], tmp_path / "killed", world=2)
        assert ended.codes == [0, 0], ended.output
    finally:
        launcher.close()
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")
    saved = final_checkpoint(tmp_path / "killed")
    log_scale = saved["moco_run"]["loss"]["log_scale"]
    assert abs(log_scale - -np.log(0.2)) > 1e-3
    assert len(saved["optimizer"]["param_groups"]) == 2
    options = json.loads((tmp_path / "killed" / "options.json").read_text())
    assert options["loss_arg"] == ["start=0.2"]
    assert options["dataset_arg"] == ["images=36"]


NETWORK = """
from torch import nn

def network(num_classes, width=4):
    layers = [nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)


def test_own_network_from_the_working_directory(tmp_path: Path) -> None:
    """The probe takes the arguments from the checkpoint, and imports the module only if it is named."""
    (tmp_path / "own_net.py").write_text(NETWORK)
    words = shlex.split(f"{SHAPES} {SMALL} -a own_net:network --arch-arg width=6 --epochs 1 --eval-freq 0")
    ended = run(tmp_path, str(ROOT / "main_moco.py"), *words, "--output-dir", "run")
    assert ended.returncode == 0, ended.stderr
    checkpoint = "run/checkpoint_0000.pth.tar"
    probe = [*shlex.split(f"{SHAPES} --cached --device cpu --pretrained"), checkpoint]
    refused = run(tmp_path, str(ROOT / "main_lincls.py"), *probe)
    assert refused.returncode == 2
    assert "pass --arch own_net:network to import it" in refused.stderr
    ended = run(tmp_path, str(ROOT / "main_lincls.py"), *probe, "--arch", "own_net:network", "--output-dir", "probe")
    assert ended.returncode == 0, ended.stderr
    state = torch.load(tmp_path / "probe" / "checkpoint.pth.tar", weights_only=True)
    assert state["state_dict"]["module.0.weight"].shape == (6, 3, 3, 3)
    assert state["moco_lincls"]["options"]["arch_arg"] == ["width=6"]


# -- the pieces --------------------------------------------------------------------------------------------------------


class Told:
    """A loss that notes the epochs it is told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, queue: torch.Tensor, *_: torch.Tensor) -> LossOutput:
        return LossOutput((q * k).sum(), {})


def test_a_loss_is_told_its_epoch() -> None:
    options = parse_pretrain(["folder", "--loss", f"{__name__}:Told"])
    loss = make_loss(options)
    for epoch in (0, 1):
        set_epoch(loss, options, epoch)
    assert loss.epochs == [0, 1]  # type: ignore[attr-defined]


def test_a_network_of_the_checkpoint_alone_is_not_imported() -> None:
    file = EncoderFile(Path("c.pth.tar"), "MoCo", {}, arch="own:net", options={"arch_arg": ["a=1"]})
    with pytest.raises(InputError, match=r"pass --arch own:net to import it"):
        network_of(file, None, [])
    assert network_of(file, "own:net", []) == ("own:net", ["a=1"])
    assert network_of(file, "own:net", ["a=2"]) == ("own:net", ["a=2"])
    with pytest.raises(InputError, match="does not say which network it holds; pass --arch"):
        network_of(EncoderFile(Path("c"), "torch", {}), None, [])


BROKEN = {
    "raises.py": "x = 1\ny = 1 / 0\n",
    "syntax.py": "def f(:\n",
    "needs.py": "import not_there_at_all\n",
    "fine.py": "number = 3\ndef needs_two(a, b):\n    pass\ndef gives_none(**_):\n    pass\n",
}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--loss nowhere:X", "there is no module nowhere in "),
        ("--loss raises:X", r"its import failed at .*raises.py line 2: ZeroDivisionError: division by zero"),
        ("--loss syntax:X", r"syntax.py line 1: "),
        ("--loss needs:X", r"its import failed at .*needs.py line 1: ModuleNotFoundError"),
        ("--loss fine:needs_too", "fine.py defines no needs_too; did you mean needs_two"),
        ("--loss fine:number", "--loss fine:number is a int; it must be a class or a function"),
        ("--loss fine:needs_two --loss-arg a=1", "missing a required argument: 'b'; arguments are given as --loss-arg"),
        ("--loss fine:needs_two --loss-arg 3", "--loss-arg 3 must have the form name=value"),
        ("--loss-arg a=1", "--loss-arg a=1 works only with --loss module:Name, not with the built-in infonce"),
        ("--arch-arg a=1", "--arch-arg a=1 works only with --arch module:Name"),
        ("--dataset-arg a=1", "--dataset-arg a=1 works only with --dataset module:Name"),
        ("--loss infonse", "unknown --loss 'infonse'; did you mean infonce.*or module:Name"),
        ("--dataset cifar1", "unknown --dataset 'cifar1'; did you mean cifar10"),
        ("--dataset fine:needs_two --dataset-arg c=1", "got an unexpected keyword argument 'c'"),
        ("--arch fine:needs_two", "missing a required argument: 'b'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in BROKEN.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    try:
        with pytest.raises(InputError, match=says) as error:
            parse_pretrain(["folder", *words.split()])
    finally:
        for name in BROKEN:
            sys.modules.pop(name.removesuffix(".py"), None)
    assert "\n" not in str(error.value)


def keep(a: object) -> dict[str, object]:
    return {"a": a}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 1e-4),
        ("true", True),
        ("None", None),
        ("a b", "a b"),
        ("[1, 2]", [1, 2]),
        ("'1'", "1"),
        ("", ""),
    ],
)
def test_values_of_arguments(text: str, value: object) -> None:
    options = parse_pretrain(["folder", "--loss", f"{__name__}:keep", "--loss-arg", f"a={text}"])
    assert options.loss_arg == [f"a={text}"]
    with pytest.raises(InputError, match="gives a dict; it must give an object to call"):
        make_loss(options)
    assert find("--loss", options.loss or "", options.loss_arg)() == {"a": value}


def test_arguments_may_stand_in_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "dataset: digits\nloss: examples.own_loss:LearnedTemperature\nloss_arg: [start=0.5]\n"
    )
    options = parse_pretrain(["--config", str(tmp_path / "c.yaml")])
    assert options.loss_arg == ["start=0.5"]
    assert make_loss(options).log_scale.item() == pytest.approx(np.log(2))  # type: ignore[attr-defined]


def test_a_module_is_no_network() -> None:
    with pytest.raises(InputError, match=r"--arch builtins:int gives a int, not a torch.nn.Module"):
        build_encoder("builtins:int", 3)
    with pytest.raises(InputError, match=r"--arch-arg a=1 works only with --arch module:Name"):
        parse_lincls(["--dataset", "digits", "--arch", "resnet18", "--arch-arg", "a=1"])


# -- torch data sets ---------------------------------------------------------------------------------------------------


def test_a_torch_dataset_as_a_source() -> None:
    source = open_split(None, "examples.own_dataset:shapes", "val", arguments=["images=40"])
    there = shapes("val", None, images=40)
    assert there is not None
    assert source.labels.tolist() == [0, 1] * 5
    assert source.classes == ["disc", "square"]
    assert source.size(3) == (48, 64)
    assert np.array_equal(source.open(3).decode().array, there[3][0])
    assert source.name(3) == "examples.own_dataset:shapes/val[3]"


def nothing(split: str, data: str | None) -> None:
    assert (split, data) == ("val", "/photos")


def test_a_split_that_is_not_there() -> None:
    assert not has_split("/photos", f"{__name__}:nothing", "val")
    with pytest.raises(InputError, match="gives None for the split val"):
        open_split("/photos", f"{__name__}:nothing", "val")


def unlabelled(split: str, data: str | None) -> list[Image.Image]:
    return [Image.new("L", (5, 4), 7)]


def test_images_without_labels() -> None:
    source = open_split(None, f"{__name__}:unlabelled", labels_required=False)
    assert source.labels.tolist() == [-1]
    assert source.classes == []
    assert source.decode(0).tolist() == [[[7, 7, 7]] * 5] * 4
    assert "no attribute targets or labels" in source.notes[0]
    with pytest.raises(InputError, match="images without a label in train"):
        open_split(None, f"{__name__}:unlabelled")


class Sick:
    targets = (0, 1, 0)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 1:
            raise OSError("the disk is gone")
        return torch.zeros(3, 4, 5)


def test_samples_that_cannot_be_used() -> None:
    source = MapStyleSource(Sick(), "sick")
    with pytest.raises(BadImage, match=r"sick\[1\]: OSError: the disk is gone"):
        source.open(1)
    with pytest.raises(InputError, match=r"sick\[0\] is float32 \[3, 4, 5\]; an image must be a Pillow image or uint8"):
        source.decode(0)
    Sick.targets = (0, 1)  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"sick has 3 images and labels of shape \[2\]"):
        MapStyleSource(Sick(), "sick")
