"""The lines at the start and at the end of a run; the command at the end is one that works."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest

from moco.pretrain.__main__ import main
from moco.pretrain.hints import collapse_ahead, first_losses, next_command
from moco.pretrain.options import parse_pretrain
from moco.probe.options import parse_lincls


def test_chance_is_said_until_the_queue_is_full() -> None:
    options = parse_pretrain(shlex.split("--dataset digits -a smallcnn --moco-k 1000 -b 100"))
    (line,) = first_losses(options, 0)
    assert f"log(K + 1) = {math.log(1001):.2f};" in line
    assert "takes 10 steps" in line
    assert first_losses(options, 9)
    assert not first_losses(options, 10)
    (line,) = first_losses(parse_pretrain(shlex.split("--dataset digits --moco-k 1000 -b 100 --symmetric")), 0)
    assert "takes 5 steps" in line


@pytest.mark.parametrize("words", ["--loss align-uniform", "--moco-k 0", "--loss hard"])
def test_other_losses_have_another_chance(words: str) -> None:
    assert not first_losses(parse_pretrain(shlex.split(f"--dataset digits -a smallcnn {words}")), 0)


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ("--loss hard --moco-m 0.9", True),
        ("--loss hard --moco-m 0.98", True),
        ("--loss hard-simple --moco-m 0.9", False),
        ("--loss hard --moco-m 0.99", False),
        ("--loss hard --moco-m 0.9 --moco-hard-alpha 0.5", False),
        ("--loss infonce --moco-m 0.9", False),
    ],
)
def test_the_hard_loss_warns_of_a_fast_key_encoder(words: str, warned: bool) -> None:
    lines = collapse_ahead(parse_pretrain(shlex.split(f"--dataset digits -a smallcnn {words}")))
    assert bool(lines) == warned
    assert all("raise --moco-m" in line for line in lines)


def test_the_command_at_the_end_probes_what_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--dataset digits -a smallcnn --moco-dim 8 --moco-k 64 -b 700 --epochs 1 -j 1 --eval-freq 0"
    assert main([*shlex.split(words), "--no-tensorboard", "--output-dir", str(tmp_path / "a run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("log(K + 1) = 4.17" in line for line in lines)
    python, script, *command = shlex.split(lines[-1].removeprefix("done; next, the linear probe: "))
    assert (python, script) == ("python", "main_lincls.py")
    options = parse_lincls(command)
    assert options.pretrained is not None and Path(options.pretrained).exists()
    assert (options.dataset, options.data) == ("digits", None)


def test_without_validation_images_the_encoder_is_exported(tmp_path: Path) -> None:
    (tmp_path / "photos" / "train").mkdir(parents=True)
    options = parse_pretrain([str(tmp_path / "photos"), "--epochs", "3", "--output-dir", "out"])
    assert next_command(options) == "done; next, for other programs: python -m moco.export out/checkpoint_0002.pth.tar"
