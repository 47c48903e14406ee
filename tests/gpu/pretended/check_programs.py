"""Whole runs: evaluation, checkpoints, resume, profile, and the probe in each of its forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moco.timing
from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.encoders import build_encoder
from moco.evaluate.features import encode
from moco.pretrain.step import TrainingStep
from moco.run.checkpoint import checkpoints
from moco.run.log import read_log
from tests.gpu.pretended import trainer

RUN = "--recipe lincls --moco-k 16 --amp bf16 --print-freq 100"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one epoch, written from the GPU."""
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        trainer.prepare(patch)
        with trainer.on_gpu(patch) as (gpu, _):
            assert trainer.pretrain(f"{RUN} --epochs 1 -b 8 --eval-freq 0", folder) == 0
    assert gpu.faults == []
    return folder / "checkpoint_0000.pth.tar"


@pytest.mark.parametrize(("world", "rank"), [(1, 0), (8, 5)])
def test_a_run_with_evaluation_saves_and_profile(
    world: int, rank: int, patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WARM_UP", "STEPS"):
        patch.setattr(moco.timing, name, 1)
    with trainer.on_gpu(patch, world, rank) as (gpu, _), trainer.steps_watched(gpu, patch) as waits:
        words = f"{RUN} --epochs 2 -b 11 --save-every 1 --keep-last 9 --eval-freq 2 --max-bad-steps 2 --profile"
        assert trainer.pretrain(words, tmp_path) == 0
    assert gpu.faults == []
    assert [len(of_step) for of_step in waits[1:]] == [0, 0, 0]
    assert len(checkpoints(tmp_path)) == (4 if rank == 0 else 0)
    assert (tmp_path / "profile" / "table.txt").exists() is (rank == 0)


def waits_of(program: Callable[[str, Path], int], words: str, folder: Path, patch: pytest.MonkeyPatch) -> Counter[str]:
    with trainer.on_gpu(patch) as (gpu, _):
        assert program(words, folder) == 0
    assert gpu.faults == []
    return Counter(gpu.waits)


@pytest.mark.parametrize(("world", "rank"), [(1, 0), (8, 5)])
def test_a_run_with_an_online_probe_goes_on(world: int, rank: int, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its classifier and Adam's moments come back from the checkpoint to this rank's device."""
    words = f"{RUN} -b 11 --eval-freq 0 --online-probe"
    for epochs, more in (("1", ""), ("2", " --resume auto")):
        trainer.prepare(patch)
        with trainer.on_gpu(patch, world, rank if more else 0) as (gpu, _), trainer.steps_watched(gpu, patch) as waits:
            assert trainer.pretrain(f"{words} --epochs {epochs}{more}", tmp_path) == 0
        assert gpu.faults == []
        assert [len(of_step) for of_step in waits[1:]] == [0] * (len(waits) - 1)


def test_waits_do_not_grow_with_the_number_of_steps(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = f"--epochs 1 --eval-freq 0 {RUN} --max-bad-steps 2 --amp fp16"
    few = waits_of(trainer.pretrain, f"{words} -b 13", tmp_path / "two steps", patch)
    many = waits_of(trainer.pretrain, f"{words} -b 6", tmp_path / "four steps", patch)
    assert many - few == Counter()


@pytest.mark.parametrize("world", [1, 8])
def test_a_printed_line_is_one_wait_and_a_step_late(world: int, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When it is waited for, the GPU has been given the step after it, but for the last of an epoch."""
    before: list[list[str]] = []  # for each step, the waits until it began
    with trainer.on_gpu(patch, world, 0) as (gpu, _):
        real = TrainingStep.__call__

        def step(self: TrainingStep, *args: Any, **how: Any) -> Any:
            before.append(list(gpu.waits))
            return real(self, *args, **how)

        patch.setattr(TrainingStep, "__call__", step)
        assert trainer.pretrain(f"{RUN} --epochs 1 -b 8 --eval-freq 0 --print-freq 1", tmp_path) == 0
    assert gpu.faults == []
    lines = [sum("run/late.py" in wait for wait in waits) for waits in (*before, gpu.waits)]
    assert lines == [0, 0, 1, 3]
    assert len(before[2]) == len(before[1]) + 1, "nothing but that line is waited for"
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "train"] == [1, 2, 3]


@pytest.mark.parametrize(("arrived", "lines"), [(True, [1, 2]), (False, [1])])
def test_a_line_that_has_arrived_is_not_lost_with_the_run(
    arrived: bool, lines: list[int], patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A rank that fails does not wait for a device that may itself wait for ever."""
    steps = []
    with trainer.on_gpu(patch) as (gpu, _):
        real = TrainingStep.__call__

        def step(self: TrainingStep, *args: Any, **how: Any) -> Any:
            steps.append(len(gpu.waits))
            if len(steps) == 3:
                patch.setattr(torch.cuda.Event, "query", lambda _: arrived)
                raise ZeroDivisionError
            return real(self, *args, **how)

        patch.setattr(TrainingStep, "__call__", step)
        with pytest.raises(ZeroDivisionError):
            trainer.pretrain(f"{RUN} --epochs 1 -b 8 --eval-freq 0 --print-freq 1", tmp_path)
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "train"] == lines


FORMS = ["--sweep", "--cached --sweep", "--finetune", "--optimizer adam", "--features-from output"]


@pytest.mark.parametrize("form", FORMS)
def test_a_probe_waits_no_more_for_more_steps(
    form: str, pretrained: Path, patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = f"--pretrained {pretrained} --epochs 1 --print-freq 100 {form}"
    few = waits_of(trainer.probe, f"{words} -b 13", tmp_path / "few", patch)
    many = waits_of(trainer.probe, f"{words} -b 5", tmp_path / "many", patch)
    assert many - few == Counter()


@pytest.mark.parametrize("form", ["--sweep", "--finetune"])
def test_a_probe_on_several_ranks(form: str, pretrained: Path, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with trainer.on_gpu(patch, world=8) as (gpu, _):
        assert trainer.probe(f"--pretrained {pretrained} --epochs 1 -b 20 {form}", tmp_path) == 0
    assert gpu.faults == []


def test_a_solved_probe_and_its_evaluation(pretrained: Path, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with trainer.on_gpu(patch) as (gpu, _):
        assert trainer.probe(f"--pretrained {pretrained} --epochs 1", tmp_path) == 0
        assert trainer.probe(f"--evaluate --resume {tmp_path}/model_best.pth.tar", tmp_path) == 0
        assert trainer.probe(f"--resume {tmp_path}/checkpoint.pth.tar --epochs 2", tmp_path) == 0
    assert gpu.faults == []


def test_features_are_extracted_without_a_wait_a_batch(patch: pytest.MonkeyPatch) -> None:
    with trainer.on_gpu(patch) as (gpu, _):
        network = build_encoder("smallcnn", 8).to(gpu.device)
        augment = Augment(find_recipe("lincls"), 0)
        images = trainer.source()
        waits = []
        for batch in (26, 26, 5):  # the first sends the constants of the augmentations
            gpu.waits.clear()
            sampler = Sampler(len(images), batch, 0, shuffle=False, drop_last=False)
            encode(network, Loader(images, sampler, size=16, views=1, workers=1, device=gpu.device), augment)
            waits.append(Counter(gpu.waits))
    assert gpu.faults == []
    assert waits[2] == waits[1] < waits[0]


# Resume ---------------------------------------------------------------------------------------------

FORMATS = ["--channels-last", "--no-channels-last"]


def resume(words: str, folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """Goes on for an epoch; returns the faults."""
    with trainer.on_gpu(patch) as (gpu, _):
        assert trainer.pretrain(f"{RUN} --epochs 2 -b 8 --eval-freq 0 --resume {words}", folder) == 0
    return gpu.faults


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_is_resumed_in_either_format(
    form: str, pretrained: Path, patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert resume(f"{pretrained} {form}", tmp_path, patch) == []


def test_a_momentum_of_another_layout_is_refused(pretrained: Path, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fault that ended every resumed run on a GPU: a contiguous copy of a momentum in channels_last."""
    trainer.load_momentum_contiguous(patch)
    with pytest.raises(RuntimeError, match="fused optimiser: a parameter"):
        resume(str(pretrained), tmp_path, patch)


def test_saved_tensors_keep_their_layout(pretrained: Path) -> None:
    saved = torch.load(pretrained, weights_only=False)
    weights = [x for x in saved["state_dict"].values() if x.dim() == 4 and x.shape[1] > 1 and x.shape[2] > 1]
    momenta = [x["momentum_buffer"] for x in saved["optimizer"]["state"].values()]
    momenta = [x for x in momenta if x.dim() == 4 and x.shape[1] > 1 and x.shape[2] > 1]
    assert weights and momenta
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in weights + momenta)
