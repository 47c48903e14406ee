"""A run goes on in another memory format: save in one, resume in the other, our files and MoCo's.

The fused kernels pair parameter and momentum in the order of memory. When a resume left the momentum in the saved
format, one step on the CPU went in a wrong direction without an error, and on a GPU it ended in a traceback.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from moco.pretrain.__main__ import main
from moco.pretrain.optimiser import check_layouts, load_state, zero_momentum
from moco.run import checkpoint

# one step an epoch, so that the second epoch is a single step with the momentum of the first
COMMAND = shlex.split(
    "--dataset digits -a smallcnn --image-size 16 -b 1437 --seed 0 -j 1 --lr 0.05 --moco-dim 16 --moco-k 1437"
    " --moco-m 0.9 --bn local --eval-freq 0 --no-tensorboard --device cpu"
)
FORMATS = {True: "--channels-last", False: "--no-channels-last"}


def train(folder: Path, epochs: int, channels_last: bool, *more: str) -> dict[str, Any]:
    words = [*COMMAND, "--epochs", str(epochs), FORMATS[channels_last], "--output-dir", str(folder), *more]
    assert main(words) == 0
    return checkpoint.load(folder / f"checkpoint_{epochs - 1:04d}.pth.tar")["state_dict"]


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    weights = [name for name in a if "encoder_q" in name and name.endswith("weight")]
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in weights)


@pytest.fixture(scope="module", params=[True, False], ids=["NHWC", "NCHW"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, Path, dict[str, Any]]:
    """(memory format, checkpoint after epoch 1, weights after epoch 2 of the undisturbed run)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    weights = train(folder, 2, request.param)
    return request.param, folder / "checkpoint_0000.pth.tar", weights


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "MoCo's"])
@pytest.mark.parametrize("change", [False, True], ids=["same format", "other format"])
def test_goes_on_in_either_format(
    saved: tuple[bool, Path, dict[str, Any]], change: bool, foreign: bool, tmp_path: Path
) -> None:
    channels_last, path, undisturbed = saved
    if foreign:
        state = checkpoint.load(path)
        del state["moco_run"]
        path = tmp_path / "foreign.pth.tar"
        torch.save(state, path)
    resumed = train(tmp_path / "run", 2, channels_last != change, "--resume", str(path))
    before = checkpoint.load(path)["state_dict"]
    difference = largest_difference(resumed, undisturbed)
    step = largest_difference(before, undisturbed)
    if change:
        assert difference < 0.01 * step  # other kernels round differently; with the fault it was as large as the step
    else:
        assert difference == 0


def parameter(memory_format: torch.memory_format) -> torch.nn.Parameter:
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(4, 3, 5, 5).contiguous(memory_format=memory_format))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_every_moment_takes_the_parameters_format(kind: Any, fused: bool) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01, "fused": fused}
    if kind is torch.optim.SGD:
        settings["momentum"] = 0.9
    results = []
    for after in (torch.contiguous_format, torch.channels_last):
        one = parameter(torch.contiguous_format)
        optimizer = kind([one], **settings)
        gradient = torch.arange(one.numel(), dtype=torch.float32).view_as(one).sin()
        one.grad = gradient.clone()
        optimizer.step()
        other = torch.nn.Parameter(one.detach().clone(memory_format=after))
        again = kind([other], **settings)
        load_state(again, optimizer.state_dict())
        check_layouts(again)
        other.grad = gradient.clone(memory_format=after)
        again.step()
        results.append(other.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


def test_a_state_of_another_format_is_refused() -> None:
    weight = parameter(torch.channels_last)
    optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9)
    zero_momentum(optimizer)
    check_layouts(optimizer)
    optimizer.state[weight]["momentum_buffer"] = torch.zeros(weight.shape)
    with pytest.raises(RuntimeError, match="momentum_buffer of a parameter of shape"):
        check_layouts(optimizer)


def test_hyper_parameters_are_those_asked_for() -> None:
    weight = parameter(torch.contiguous_format)
    saved = torch.optim.AdamW([weight], 0.1, betas=(0.5, 0.6), weight_decay=0.3).state_dict()
    optimizer = torch.optim.AdamW([weight], 0.2, betas=(0.8, 0.9), weight_decay=0.4)
    load_state(optimizer, saved)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.2, (0.8, 0.9), 0.4)
