"""What a checkpoint holds, that a run goes on from it with the same bits, and which files it is refused from."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moco.builder import MoCo
from moco.data.loader import Batch
from moco.distributed.global_batch import GlobalBatch
from moco.encoders import build_encoder
from moco.errors import InputError
from moco.losses.table import LOSSES, make_loss
from moco.pretrain import state as resume
from moco.pretrain.heads import projector_of
from moco.pretrain.optimiser import make_optimizer
from moco.pretrain.options import PretrainOptions, parse_pretrain
from moco.pretrain.state import Position, find, restore, snapshot
from moco.pretrain.step import TrainingStep
from moco.run import checkpoint
from moco.run.meter import Meter

CPU = torch.device("cpu")


def options(*more: str) -> PretrainOptions:
    words = [
        "--dataset",
        "digits",
        "-a",
        "smallcnn",
        "--moco-dim",
        "8",
        "--moco-k",
        "11",
        "--moco-m",
        "0.9",
        "--seed",
        "5",
    ]
    temperature = [] if {"--loss simple", "--loss hard-simple"} & {" ".join(more)} else ["--moco-t", "0.2"]
    return parse_pretrain([*words, *temperature, *more])


def augment(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    return crops.permute(0, 3, 1, 2).float() / 128 - 1 + 0.01 * view


class Noisy(nn.Module):
    """An encoder that draws from torch's own generator, as dropout and stochastic depth do."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(nn.functional.dropout(x, 0.2, self.training))


def training_step(o: PretrainOptions, seed: int = 0, noisy: bool = False) -> TrainingStep:
    torch.manual_seed(seed)
    encoder = build_encoder(o.arch, o.moco_dim, o.mlp, projector=projector_of(o))
    model = MoCo(
        Noisy(encoder) if noisy else encoder, o.moco_dim, o.moco_k, o.moco_m, o.bn, 4, seed=o.seed or 0,
        queue_per_view=o.queue_per_view,
    )  # fmt: skip
    optimizer = make_optimizer(model, [], o)
    optimizer.param_groups[0]["lr"] = 0.1
    more: dict[str, Any] = {"amp": o.amp, "symmetric": o.symmetric, "accum_steps": o.accum_steps}
    return TrainingStep(model, make_loss(o), optimizer, augment, GlobalBatch(), **more)


def run(step: TrainingStep, meters: list[Meter], steps: range) -> list[Tensor]:
    losses = []
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        crops = torch.randint(0, 256, (6, 2, 8, 8, 3), generator=generator, dtype=torch.uint8)
        batch = Batch(crops, torch.arange(6), (torch.arange(6) + number) % 7)
        values, _ = step(batch, 0, [6])
        losses.append(values["loss"])
        for meter in meters:
            meter.add(values, 6)
    return losses


def everything(step: TrainingStep) -> dict[str, Tensor]:
    states = step.optimizer.state_dict()["state"].items()
    velocity = {f"{name}{i}": value for i, state in states for name, value in state.items()}
    return {**step.moco.state_dict(), **velocity, **step.moco.queue_state(), "step": torch.tensor(step.moco.step)}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_goes_on_with_the_same_bits(tmp_path: Path, amp: str, optimizer: str) -> None:
    """Through a file, into a model that began elsewhere: weights, both encoders' statistics, momentum, queue, labels,
    fill, shuffles, torch's generator, loss scale, running means."""
    o = options("--amp", amp, "--optimizer", optimizer)
    through, through_meters = training_step(o, noisy=True), [Meter(), Meter()]
    run(through, through_meters, range(3))
    position = Position(epoch=4, step=3, global_step=23)
    checkpoint.save(tmp_path / "c.pth.tar", snapshot(through, through_meters, position, o))
    through_meters[0].read()  # as if a line had been printed after the save
    expected = run(through, through_meters, range(3, 6))

    other, meters = training_step(o, seed=99, noisy=True), [Meter(), Meter()]
    run(other, meters, range(50, 52))  # whatever it holds must go
    restored, notes = restore(checkpoint.load(tmp_path / "c.pth.tar"), tmp_path / "c.pth.tar", other, meters, o)
    assert restored == position and notes == []
    losses = run(other, meters, range(3, 6))

    assert torch.stack(losses).equal(torch.stack(expected))
    assert same_bits(everything(other), everything(through))
    assert other.moco.step == through.moco.step == 6 and int(other.moco.filled) == 11
    assert other.guard.scaler.state_dict() == through.guard.scaler.state_dict()
    assert meters[1].read() == through_meters[1].read()


@pytest.mark.parametrize(
    "words",
    [
        *(f"--loss {loss}" for loss in LOSSES),
        *(f"--symmetric --loss {loss}" for loss in ("infonce", "supcon", "hard")),
        "--symmetric --accum-steps 2 --loss hcl --bn local",
        "--symmetric --queue-per-view --loss supcon",
        "--moco-mlp-layers 3 --moco-mlp-dim 6 --moco-mlp-bn --optimizer lars",
        "--moco-k 0",
        "--moco-k 0 --loss align-uniform",
    ],
)
def test_every_head_goes_on_with_the_same_bits(words: str) -> None:
    """Also where both views' keys are more than the queue holds, and where there is none."""
    o = options(*words.split())
    through = training_step(o)
    run(through, [], range(3))
    state = copy.deepcopy(snapshot(through, [], Position(), o))
    other = training_step(o, seed=99)
    restore(state, Path("c"), other, [], o)
    assert torch.stack(run(other, [], range(3, 6))).equal(torch.stack(run(through, [], range(3, 6))))
    assert same_bits(everything(other), everything(through))
    assert int(other.moco.filled) == o.moco_k


def test_a_bad_step_is_remembered(tmp_path: Path) -> None:
    """Else --max-bad-steps would begin to count anew after each start."""
    o = options()
    step = training_step(o)
    step.guard.bad_steps.fill_(3)
    state = snapshot(step, [], Position(), o)
    other = training_step(o)
    restore(state, tmp_path, other, [], o)
    assert other.guard.not_applied() == (3, 0)


def test_file_is_in_mocos_layout() -> None:
    o = options("--mlp")
    step = training_step(o)
    run(step, [], range(1))
    state = snapshot(step, [Meter()], Position(epoch=7, step=0, global_step=70), o)
    assert list(state) == ["epoch", "arch", "state_dict", "optimizer", "moco_run"]
    assert (state["epoch"], state["arch"]) == (7, "smallcnn")
    names = build_encoder("smallcnn", 8, mlp=True).state_dict()
    wanted = {f"module.encoder_{e}.{name}" for e in "qk" for name in names} | {"module.queue", "module.queue_ptr"}
    assert set(state["state_dict"]) == wanted
    # MoCo gives SGD all parameters, those of the key encoder too; its files list them and ours must
    parameters = state["optimizer"]["param_groups"][0]["params"]
    assert parameters == list(range(len(list(step.moco.parameters()))))
    own = state["moco_run"]
    assert own["format"] == 1 and own["global_step"] == 70 and own["step_in_epoch"] == 0
    assert own["options"] == dataclasses.asdict(o) and isinstance(own["git"], str)
    assert len(own["ranks"]) == 1


def test_a_file_of_mocos_goes_on_at_its_next_epoch(tmp_path: Path) -> None:
    """It has only the first four keys; a released one, without an optimiser, goes on too (its users' issue #27)."""
    o = options()
    step = training_step(o)
    run(step, [], range(2))
    theirs = {name: value for name, value in snapshot(step, [], Position(epoch=200), o).items() if name != "moco_run"}
    other = training_step(o, seed=1)
    position, notes = restore(copy.deepcopy(theirs), tmp_path / "moco.pth.tar", other, [Meter()], o)
    assert position == Position(epoch=200, step=0, global_step=0)
    assert len(notes) == 1 and "not written by this project" in notes[0]
    before = everything(step)
    now = everything(other)
    assert all(now[name].equal(before[name]) for name in before if name not in ("labels", "filled", "step"))

    del theirs["optimizer"]
    _, notes = restore(theirs, tmp_path / "moco.pth.tar", training_step(o, seed=1), [Meter()], o)
    assert any("no optimiser state: momentum starts from zero" in note for note in notes)


def test_a_buffer_of_the_fork_that_holds_no_state_is_left_out_and_named(tmp_path: Path) -> None:
    """The align/uniform fork's contrastive runs save a constant label: it once kept them from being resumed."""
    o = options()
    step = training_step(o)
    run(step, [], range(2))
    theirs = snapshot(step, [], Position(), o)
    del theirs["moco_run"]
    theirs["state_dict"]["module.scalar_label"] = torch.zeros((), dtype=torch.long)
    other = training_step(o, seed=1)
    _, notes = restore(copy.deepcopy(theirs), tmp_path / "fork.pth.tar", other, [], o)
    assert notes[0].startswith("left out scalar_label of ")
    assert same_bits(other.moco.state_dict(), step.moco.state_dict())
    theirs["state_dict"]["module.other_label"] = torch.zeros(())
    with pytest.raises(InputError, match="other_label"):
        restore(theirs, tmp_path / "fork.pth.tar", other, [], o)


def test_another_number_of_ranks_keeps_the_sums(tmp_path: Path) -> None:
    """Two ranks' running means, read by one: no sample is lost, and a note says what differs."""
    o = options()
    step = training_step(o)
    meters = [Meter(), Meter()]
    state = snapshot(step, meters, Position(), o)
    of_ranks = []
    for loss, samples in ((1.0, 3), (2.0, 1)):
        meter = Meter()
        meter.add({"loss": torch.tensor(loss)}, samples)
        of_ranks.append({**state["moco_run"]["ranks"][0], "meters": [meter.state(), Meter().state()]})
    state["moco_run"]["ranks"] = of_ranks
    _, notes = restore(state, tmp_path, training_step(o), meters, o)
    assert meters[0].read() == {"loss": (3 * 1.0 + 1 * 2.0) / 4} and meters[1].read() == {}
    assert len(notes) == 1 and "written by 2 ranks, this run has 1" in notes[0]


def test_changed_options_are_said(tmp_path: Path) -> None:
    """Those that change results, and no others."""
    o = options()
    state = snapshot(training_step(o), [], Position(), o)
    changed = options("--lr", "0.1", "--moco-t", "0:0.3,9:0.1", "-p", "3", "--output-dir", "elsewhere")
    _, notes = restore(state, tmp_path, training_step(changed), [], changed)
    assert sorted(notes) == [
        "--lr was 0.03 and is 0.1 from here on",
        "--moco-t was 0.2 and is 0:0.3,9:0.1 from here on",
    ]


def test_precision_may_change(tmp_path: Path) -> None:
    o, half = options(), options("--amp", "fp16")
    _, notes = restore(snapshot(training_step(o), [], Position(), o), tmp_path, training_step(half), [], half)
    assert notes == ["--amp was off and is fp16 from here on"]


def test_the_command_line_rules_the_optimiser(tmp_path: Path) -> None:
    """Momentum and weight decay are the new ones, and the step stays the fused one that can leave a bad step out."""
    o = options()
    step = training_step(o)
    run(step, [], range(1))
    state = snapshot(step, [], Position(), o)
    del state["optimizer"]["param_groups"][0]["fused"]  # MoCo's files know nothing of it
    changed = options("--wd", "0.25", "--momentum", "0.5")
    other = training_step(changed)
    restore(state, tmp_path, other, [], changed)
    group = other.optimizer.param_groups[0]
    assert (group["weight_decay"], group["momentum"], group["fused"]) == (0.25, 0.5, True)


# -- refused -----------------------------------------------------------------------------------------------------------


def refuse(state: dict[str, Any], o: PretrainOptions, told: str) -> None:
    """With one sentence, and the model untouched."""
    step = training_step(o)
    before = copy.deepcopy(everything(step))
    with pytest.raises(InputError, match=told) as caught:
        restore(state, Path("old.pth.tar"), step, [], o)
    assert "old.pth.tar" in str(caught.value) and "\n" not in str(caught.value)
    assert same_bits(everything(step), before)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-a", "resnet18_small"], r"holds a smallcnn, not a resnet18_small; pass --arch smallcnn"),
        (["--moco-dim", "16"], r"--moco-dim 8 --moco-k 11; pass the same"),
        (["--moco-k", "12"], r"--moco-dim 8 --moco-k 11; pass the same"),
        (["--mlp"], r"does not fit this model \(arch, .*\?\): \d+ entries differ, the first is encoder_k\.fc"),
        (["--moco-mlp-layers", "2", "--moco-mlp-bn"], r"--predictor\?\): \d+ entries differ, the first is"),
        (["--symmetric", "--queue-per-view"], r"with one queue for both views: leave out --queue-per-view"),
    ],
)
def test_another_models_checkpoint_is_refused(words: list[str], told: str) -> None:
    state = snapshot(training_step(options()), [], Position(), options())
    refuse(state, options(*words), told)


def test_two_queues_are_resumed_as_two() -> None:
    words = ("--symmetric", "--queue-per-view")
    state = snapshot(training_step(options(*words)), [], Position(), options(*words))
    refuse(state, options("--symmetric"), "with a queue for each view: pass --queue-per-view to resume it")


@pytest.mark.parametrize("word", ["-b", "--seed"])
def test_an_epoch_is_finished_as_it_was_begun(word: str) -> None:
    """Its samples would be others; at an epoch's end, both may change."""
    state = snapshot(training_step(options()), [], Position(1, 3, 9), options())
    refuse(state, options(word, "77"), r"saved inside an epoch with --(batch-size 256|seed 5); pass the same value")
    state["moco_run"]["step_in_epoch"] = 0
    restore(state, Path("old.pth.tar"), training_step(options()), [], options(word, "77"))


def test_a_file_without_arch_is_judged_by_its_tensors() -> None:
    state = snapshot(training_step(options()), [], Position(), options())
    del state["arch"]
    refuse(state, options("-a", "resnet18_small"), "does not fit this model")


@pytest.mark.parametrize("missing", ["state_dict", "epoch"])
def test_a_foreign_file_is_refused(missing: str) -> None:
    state = snapshot(training_step(options()), [], Position(), options())
    del state[missing]
    refuse(state, options(), r"is not a MoCo run's checkpoint .* --init-from")


# -- which file, which seed --------------------------------------------------------------------------------------------


def test_which_file_resume_means(tmp_path: Path) -> None:
    o = options()
    folder = tmp_path / "run"
    assert find(None, folder) == (None, [])
    path, notes = find("auto", folder)
    assert path is None and notes == [f"nothing to resume in {folder}; starting afresh"]
    assert not folder.exists(), "looking must not make it"
    folder.mkdir()
    state = snapshot(training_step(o), [], Position(), o)
    for name in (checkpoint.checkpoint_name(0), checkpoint.checkpoint_name(1), checkpoint.checkpoint_name(1, 2)):
        checkpoint.save(folder / name, state)
    with pytest.raises(InputError, match=r"already holds a run; pass --resume auto .* or another --output-dir"):
        find(None, folder)
    newest = folder / checkpoint.checkpoint_name(1)
    assert find("auto", folder) == (newest, [f"resuming from {newest}"])
    assert find("elsewhere.pth.tar", folder) == (Path("elsewhere.pth.tar"), [])
    newest.write_bytes(newest.read_bytes()[:1000])
    path, notes = find("auto", folder)
    assert path == folder / checkpoint.checkpoint_name(1, 2)
    assert notes[0].startswith(f"skipped {newest}: ") and notes[-1] == f"resuming from {path}"


def test_which_seed() -> None:
    """The one asked for, else that of the run that goes on, else a new one."""
    o = options()
    state = snapshot(training_step(o), [], Position(), o)
    assert resume.seed(7, state) == 7 and resume.seed(0, None) == 0
    assert resume.seed(None, state) == 5
    drawn = {resume.seed(None, None) for _ in range(4)} | {resume.seed(None, {"epoch": 3})}
    assert len(drawn) == 5
