"""Multi-crop (`--crops`): which boxes are cut, what a step minimises, and runs that are cut and resumed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from moco.builder import MoCo
from moco.data.beton.writer import write_beton
from moco.data.boxes import random_box
from moco.data.crops import MultiCrop, SmallCrops, multi_crop
from moco.data.folder import FolderSource
from moco.data.loader import Batch, Loader
from moco.data.sampler import Sampler
from moco.data.source import ArraySource
from moco.distributed.global_batch import GlobalBatch
from moco.errors import InputError
from moco.losses import BatchKeysLoss, WeightedLoss
from moco.pretrain.__main__ import main
from moco.pretrain.options import parse_pretrain
from moco.pretrain.step import TrainingStep
from moco.run import checkpoint
from moco.run.log import read_log
from tests import oracles
from tests.pretrain.test_state import same_bits

T, LR, DIM, K, W = 0.4, 0.3, 4, 9, 3


def test_the_words_of_the_option() -> None:
    assert multi_crop("2x224@.14-1+6x96@.05-.14") == MultiCrop(224, (0.14, 1.0), SmallCrops(6, 96, (0.05, 0.14)))
    for wrong in ("2x224@.14-1", "3x9@.1-1+1x4@.1-.2", "2x9@.1-1+1x4@.3-.2", "2x9@.1-2+1x4@.1-.2", "2x9@0-1+1x4@.1-.2"):
        with pytest.raises(ValueError):
            multi_crop(wrong)
    o = parse_pretrain(["folder", "--crops", "2x160@.2-1+6x96@.05-.2"])
    assert o.image_size == 160 and o.crop_min == 0.2


def test_boxes_are_a_function_of_seed_epoch_index_and_view() -> None:
    """In any batch, of any order; the large crops are those of a run without small ones. An image is decoded once."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 40, 30, 3), dtype=np.uint8)
    source = ArraySource(images, np.zeros(7, dtype=np.int64), ["a"], "made up")
    opened: list[int] = []

    class Counted(ArraySource):
        def open(self, index: int) -> Any:
            opened.append(index)
            return super().open(index)

    counted = Counted(images, np.zeros(7, dtype=np.int64), ["a"], "made up")
    small = SmallCrops(2, 6, (0.05, 0.2))
    how: dict[str, Any] = dict(size=12, scale=(0.3, 1.0), workers=1, seed=5)
    whole = next(Loader(counted, Sampler(7, 7, 0), small=small, **how).epoch(3))
    plain = next(Loader(source, Sampler(7, 7, 0), **how).epoch(3))
    assert sorted(opened) == list(range(7))  # one decode an image
    assert whole.crops.equal(plain.crops) and plain.small is None
    assert whole.small is not None and whole.small.shape == (7, 2, 6, 6, 3)
    loader = Loader(source, Sampler(7, 2, 9), small=small, **how)
    for batch in loader.epoch(3):
        for row, index in enumerate(batch.index.tolist()):
            place = whole.index.tolist().index(index)
            assert batch.small is not None and batch.small[row].equal(whole.small[place])
    draws = loader.draws(3, np.array([4]))[0]
    boxes = loader.boxes(draws, (40, 30))
    assert boxes[2:] == [random_box(row, (40, 30), (0.05, 0.2), (3 / 4, 4 / 3)) for row in draws[2:].tolist()]
    assert boxes[2] != boxes[3] and all(h * w <= 0.25 * 40 * 30 for _, _, h, w in boxes[2:])


# -- a step ------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.fc = nn.Linear(4, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.conv(x)).mean((2, 3)))


def augment(crops: Tensor, index: Tensor, epoch: int, view: int) -> Tensor:
    x = crops.permute(0, 3, 1, 2).float() / 128 - 1
    return x * torch.cos(index + epoch + 2 * view).view(-1, 1, 1, 1)


def batch(n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(7)
    crops, small = (
        torch.randint(0, 256, (n, views, side, side, 3), generator=generator, dtype=torch.uint8)
        for views, side in ((2, 8), (W, 5))
    )
    return Batch(crops, torch.arange(n), torch.full((n,), -1), small)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("keys", "accum_steps"), [("queue", 1), ("queue", 2), ("batch", 1)])
def test_small_crops_are_queries_against_the_keys_of_the_large_ones(
    keys: str, symmetric: bool, accum_steps: int
) -> None:
    torch.manual_seed(3)
    model = MoCo(Net(), DIM, K, 0.6, "local", keys=keys)
    optimizer = torch.optim.SGD(model.parameters(), LR, fused=True)
    loss = BatchKeysLoss(1.0, T) if keys == "batch" else WeightedLoss(1.0, T)
    more: dict[str, Any] = {"symmetric": symmetric, "accum_steps": accum_steps}
    step = TrainingStep(model, loss, optimizer, augment, GlobalBatch(), **more)
    before = {name: p.detach().clone().requires_grad_() for name, p in model.encoder_q.named_parameters()}
    data, queue = batch(), model.queue.clone()
    values, _ = step(data, 1, [6])
    assert data.small is not None

    def encode(crops: Tensor, view: int) -> Tensor:
        images = augment(crops, data.index, 1, view)
        return oracles.unit_rows(torch.func.functional_call(model.encoder_q, before, images))

    q = [encode(data.crops[:, v], v) for v in (0, 1)]
    k = [x.detach() for x in q]  # the key encoder still is the query encoder
    small = [encode(data.small[:, w], 2 + w) for w in range(W)]
    terms = []
    for query_view, key_view in ((0, 1), (1, 0)) if symmetric else ((0, 1),):
        for queries in (q[query_view], *small):
            of_keys = oracles.moco_v3_ctr(queries, k[key_view], T) if keys == "batch" else None
            terms.append(of_keys if of_keys is not None else oracles.contrastive(queries, k[key_view], queue, T))
    expected = sum(terms) / len(terms) * (2 if keys == "batch" and symmetric else 1)  # v3's directions add up
    torch.testing.assert_close(values["loss"], expected.detach(), rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(expected, list(before.values()))
    for (name, old), gradient in zip(before.items(), gradients, strict=True):
        new = model.encoder_q.get_parameter(name)
        torch.testing.assert_close(new, old - LR * gradient, rtol=1e-4, atol=1e-6, msg=name)
    if keys == "queue":  # keys of the large crops alone are queued
        assert int(model.queue_ptr) == (6 * (2 if symmetric else 1)) % K


# -- runs --------------------------------------------------------------------------------------------------------------

COMMAND = shlex.split(
    "--dataset digits -a smallcnn -b 64 --seed 0 -j 1 --moco-dim 64 --moco-m 0.95 --moco-t 0.2 --cos --symmetric"
    " --crops 2x8@.4-1+2x6@.3-.5 --bn local --no-tensorboard --device cpu --optimizer adamw --lr 3e-3 --wd 1e-6"
)
V3 = shlex.split("--keys batch --predictor resnet --moco-mlp-layers 2 --moco-mlp-dim 256 --moco-mlp-bn --lr-per-step")


def test_a_run_cut_inside_an_epoch_ends_with_the_same_bits(tmp_path: Path) -> None:
    words = ["--epochs", "1", "--eval-freq", "0", "--save-every", "15", "--moco-k", "999", "--accum-steps", "2"]
    assert main([*COMMAND, *words, "--output-dir", str(tmp_path / "whole")]) == 0
    inside = next(path for path in checkpoint.checkpoints(tmp_path / "whole") if checkpoint.position(path) == (0, 15))
    assert main([*COMMAND, *words, "--output-dir", str(tmp_path / "cut"), "--resume", str(inside)]) == 0
    whole, cut = (checkpoint.load(tmp_path / name / "checkpoint_0000.pth.tar") for name in ("whole", "cut"))
    assert same_bits(whole["state_dict"], cut["state_dict"])


def test_a_run_from_a_beton_ends_with_the_folders_bits(tmp_path: Path) -> None:
    """Raw pixels: the same crops, large and small, so the same weights."""
    pytest.importorskip("ffcv")
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (20 + i, 18, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / "train" / name / f"{i}.png")
    write_beton(FolderSource(tmp_path / "images" / "train"), tmp_path / "x.beton", mode="raw")
    words = shlex.split(
        "-a smallcnn -b 4 --epochs 2 --seed 1 -j 1 --moco-dim 16 --moco-k 64 --symmetric --bn local --device cpu"
        " --crops 2x16@.4-1+3x8@.1-.4 --no-tensorboard --eval-freq 0 --output-dir"
    )
    for data in ("images", "x.beton"):
        assert main([str(tmp_path / data), *words, str(tmp_path / f"run of {data}")]) == 0
    folder, beton = (
        checkpoint.load(tmp_path / f"run of {data}" / "checkpoint_0001.pth.tar") for data in ("images", "x.beton")
    )
    assert same_bits(folder["state_dict"], beton["state_dict"])


def test_it_beats_the_untrained_encoder(tmp_path: Path) -> None:
    def knn(*more: str) -> float:
        folder = tmp_path / more[1]
        assert main([*COMMAND, *V3, "--eval-freq", "50", "--output-dir", str(folder), *more]) == 0
        return next(r["knn_top1"] for r in reversed(read_log(folder / "log.jsonl")) if r["kind"] == "eval")

    trained, untrained = knn("--epochs", "14"), knn("--epochs", "1", "--lr", "1e-12")
    assert trained > untrained + 1, (untrained, trained)


def test_what_is_refused() -> None:
    crops = ["--crops", "2x32@.2-1+2x16@.1-.2"]
    for words, told in (
        (["--moco-k", "0"], "--crops has no meaning with --moco-k 0"),
        (["--image-size", "64"], "--image-size is not read with --crops"),
        (["--crop-min", ".1"], "--crop-min is not read with --crops"),
    ):
        with pytest.raises(InputError, match=told):
            parse_pretrain(["folder", *crops, *words])


def test_a_network_for_one_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--dataset digits -a vit_small --crops 2x32@.2-1+2x16@.1-.2 --device cpu --output-dir"
    assert main([*words.split(), str(tmp_path / "run")]) == 2
    assert "--arch vit_small does not take images of 16 px: change --crops" in capsys.readouterr().err
