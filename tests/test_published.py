"""Wang & Isola's STL-10 and ImageNet-100 protocols against definitions written from the paper, not from moco/."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from launch import options_file
from moco.data.augment.recipes import RECIPES
from moco.data.boxes import centre_box
from moco.data.source import ArraySource
from moco.encoders.preprocessing import Preprocessing
from moco.errors import InputError
from moco.evaluate.features import centre_crops
from moco.losses.in_batch import InBatchLoss
from moco.pretrain.__main__ import make_encoder, make_loader, make_step
from moco.pretrain.options import ResolvedPretrainOptions, parse_pretrain
from moco.probe.options import LinclsOptions, parse_lincls
from moco.probe.training import Classifiers, make_optimizer
from moco.schedules import learning_rate
from moco.world import World
from tests import oracles

RECIPES_OF_RUNS = Path(__file__).resolve().parent.parent / "launch" / "recipes"
ADAM = "--optimizer adam --adam-betas 0.5 0.999 --lr 0.002 -b 128 --lr-drop 0.2 --schedule 60 80"
CPU = torch.device("cpu")


def recipe(name: str, *more: str) -> ResolvedPretrainOptions:
    return parse_pretrain(["--config", str(RECIPES_OF_RUNS / f"{name}.yaml"), *more], 1)


def probe_of(name: str) -> LinclsOptions:
    """The probe that the recipe's own command trains, from its comment."""
    head = [line[1:].strip() for line in (RECIPES_OF_RUNS / f"{name}.yaml").read_text().splitlines() if line[0] == "#"]
    at = next(i for i, line in enumerate(head) if line.startswith("command"))
    words = [head[at]]
    while words[-1].endswith("\\"):
        words.append(head[at + len(words)])
    flags = " ".join(word.rstrip("\\") for word in words).partition("--then-lincls")[2].split(" -- ")[2]
    return options_file.probe(flags.split(), recipe(name, "photos") if "imagenet" in name else recipe(name))


# -- the encoder's start -----------------------------------------------------------------------------------------------


def test_the_initial_weights() -> None:
    """N(0, .02) in every convolution and linear layer, biases 0, BatchNorm 1 and 0."""
    torch.manual_seed(0)
    encoder, _ = make_encoder(recipe("stl10"), CPU, fresh=True)
    layers = [m for m in encoder.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 8
    for layer in layers:
        n = layer.weight.numel()
        assert layer.weight.mean().abs() < 5 * 0.02 / math.sqrt(n)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * n))
        fourth = (layer.weight / 0.02).pow(4).mean().item()  # 3 for a normal distribution, 1.8 for a uniform one
        assert fourth == pytest.approx(3, abs=5 * math.sqrt(96 / n))
        assert layer.bias is None or not layer.bias.any()
    for norm in (m for m in encoder.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))):
        assert (norm.weight == 1).all() and not norm.bias.any()


def test_without_the_option_the_network_starts_as_it_did() -> None:
    weights = []
    for words in ([], ["--init-std", "0.02"]):
        torch.manual_seed(0)
        encoder, _ = make_encoder(parse_pretrain(["--dataset", "digits", "-a", "smallcnn", *words], 1), CPU, fresh=True)
        weights.append(encoder.state_dict()["features.0.weight"])
    torch.manual_seed(0)
    from moco.encoders import build_encoder

    torch.testing.assert_close(weights[0], build_encoder("smallcnn", 128, image_size=32).features[0].weight.detach())
    assert weights[1].std().item() == pytest.approx(0.02, rel=0.2) != pytest.approx(weights[0].std().item(), rel=0.2)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, 0.19, 1.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_cross_view_is_the_formula(n: int, temperature: float) -> None:
    """Value and gradient, through the normalisation, of a loop over pairs in float64."""
    generator = torch.Generator().manual_seed(n)
    raw = [torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    q, k = (F.normalize(x, dim=1) for x in raw)
    loss = InBatchLoss(1.0, temperature, negatives="cross-view")(q, k, q.new_zeros(6, 0)).loss
    expected = oracles.cross_view(oracles.unit_rows(raw[0]), oracles.unit_rows(raw[1]), temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(value, raw, materialize_grads=True) for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_cross_view_counts_the_other_views_keys_alone() -> None:
    """On the identity every one of the n - 1 negatives is at a right angle; on a single point the loss is log n."""
    eye, point = torch.eye(4, dtype=torch.float64), F.normalize(torch.ones(4, 4, dtype=torch.float64), dim=1)
    loss = InBatchLoss(1.0, 0.5, negatives="cross-view")
    assert loss(eye, eye, eye[:, :0]).loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-2)), abs=1e-12)
    assert loss(point, point, eye[:, :0]).loss.item() == pytest.approx(math.log(4), abs=1e-12)
    assert InBatchLoss(1.0, 0.5)(point, point, eye[:, :0]).loss.item() == pytest.approx(math.log(7), abs=1e-12)
    with pytest.raises(InputError, match="simclr or cross-view, not 'both'"):
        InBatchLoss(1.0, 0.5, negatives="both")


def test_the_recipes_say_which_loss() -> None:
    o = recipe("stl10_contrastive")
    loss = make_step(parse_pretrain(["--config", str(RECIPES_OF_RUNS / "stl10_contrastive.yaml"), "-a", "smallcnn"], 1),
                     nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 128)), 0, CPU).loss  # fmt: skip
    assert isinstance(loss, InBatchLoss) and (loss.negatives, loss.temperature) == ("cross-view", 0.19)
    assert (o.moco_contr_w, o.moco_align_w, o.moco_unif_w) == (1, 0, 0)
    o = recipe("stl10")
    assert (o.moco_contr_w, o.moco_align_w, o.moco_align_alpha, o.moco_unif_w, o.moco_unif_t) == (0, 0.98, 2, 0.96, 2)
    with pytest.raises(InputError, match="--in-batch is not read with --moco-k 64"):
        parse_pretrain(["--dataset", "digits", "--in-batch", "cross-view", "--moco-k", "64"], 1)


def test_both_views_share_one_forward() -> None:
    """So that BatchNorm sees 2N images: with the views in two passes, each would be centred by itself."""
    seen: list[int] = []
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 128))
    encoder.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    moco = make_step(recipe("stl10"), encoder, 0, CPU).moco
    moco(torch.randn(5, 3, 64, 64), torch.randn(5, 3, 64, 64))
    assert seen == [10]


# -- epochs, steps, learning rates -------------------------------------------------------------------------------------


def expected_rate(first: float, epoch: int, milestones: tuple[int, ...], factor: float) -> float:
    return first * factor ** sum(epoch >= m for m in milestones)


@pytest.mark.parametrize(
    ("name", "first", "epochs", "milestones"),
    [
        ("stl10", 0.12 * 768 / 256, 200, (155, 170, 185)),
        ("stl10_contrastive", 0.12 * 768 / 256, 200, (155, 170, 185)),
        ("align_uniform_imagenet100_paper", 0.03, 240, (120, 160, 200)),
        ("align_uniform_imagenet100", 0.03, 200, (120, 160)),
    ],
)
def test_the_learning_rate_of_every_epoch(name: str, first: float, epochs: int, milestones: tuple[int, ...]) -> None:
    o = recipe(name, *(["photos"] if "imagenet" in name else []))
    assert (o.epochs, o.optimizer, o.momentum, o.weight_decay) == (epochs, "sgd", 0.9, 1e-4)
    for epoch in range(epochs):
        ours = learning_rate(epoch, o.lr, o.epochs, o.schedule, o.cos, o.warmup_epochs)
        assert ours == pytest.approx(expected_rate(first, epoch, milestones, 0.1), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "first", "batch", "epochs", "milestones", "betas"),
    [
        ("stl10", 1e-3, 128, 100, (60, 80), (0.5, 0.999)),
        ("stl10_contrastive", 1e-3, 128, 100, (60, 80), (0.5, 0.999)),
        ("align_uniform_imagenet100_paper", 10.0, 256, 60, (30, 40, 50), None),
    ],
)
def test_the_probe_of_every_epoch(
    name: str, first: float, batch: int, epochs: int, milestones: tuple[int, ...], betas: tuple[float, float] | None
) -> None:
    """The learning rate that the optimiser gets, and Adam's betas."""
    o = probe_of(name)
    assert (o.epochs, o.batch_size) == (epochs, batch)
    optimizer, rates = make_optimizer(o, [(o.lr, o.weight_decay)], Classifiers([nn.Linear(2, 2)]), None)
    assert isinstance(optimizer, torch.optim.Adam if betas else torch.optim.SGD)
    assert all(group.get("betas") == betas for group in optimizer.param_groups)
    for epoch in range(epochs):
        ours = learning_rate(epoch, rates[0], o.epochs, o.schedule, drop=o.lr_drop)
        assert ours == pytest.approx(expected_rate(first, epoch, milestones, 0.2), rel=1e-9)


def test_the_sweeps_probe_is_the_recipes() -> None:
    settings = yaml.safe_load((RECIPES_OF_RUNS / "sweep_stl10.yaml").read_text())
    swept, alone = settings["probe"], vars(probe_of("stl10"))
    assert {name: alone[name] for name in swept} == swept
    fixed = vars(recipe("stl10"))
    assert {name: fixed[name] for name in settings["set"] if name != "in_batch"} == {
        name: value for name, value in settings["set"].items() if name != "in_batch"
    }


@pytest.mark.parametrize("words", [["--adam-betas", "0.5"], ["--adam-betas", "0.5", "1"], ["--adam-betas"]])
def test_betas_that_adam_cannot_use(words: list[str]) -> None:
    with pytest.raises(InputError, match="--adam-betas takes two numbers from 0 to below 1, such as"):
        parse_lincls(["--dataset", "digits", "--optimizer", "adam", *words])
    with pytest.raises(InputError, match="--adam-betas is not read with --optimizer sgd"):
        parse_lincls(["--dataset", "digits", "--adam-betas", "0.5", "0.999"])


def blank(n: int) -> ArraySource:
    return ArraySource(np.zeros((n, 96, 96, 3), np.uint8), np.zeros(n), ["one"], "blank")


def test_the_last_batch_is_kept() -> None:
    """105,000 images in batches of 768 are 136 steps and one of 552; without the option MoCo's 136."""
    small = ["-b", "48", "-j", "1"]
    kept = make_loader(recipe("stl10", *small), blank(100), World(0, 1, 0), 0, CPU)
    assert [len(batch.index) for batch in kept.epoch(0)] == [48, 48, 4]
    dropped = make_loader(parse_pretrain(["--dataset", "stl10", *small], 1), blank(100), World(0, 1, 0), 0, CPU)
    assert [len(batch.index) for batch in dropped.epoch(0)] == [48, 48]
    with pytest.raises(InputError, match="97 images leave 1 for the last batch"):
        make_loader(recipe("stl10", *small), blank(97), World(0, 1, 0), 0, CPU)


# -- the picture that is evaluated -------------------------------------------------------------------------------------


def test_the_crop_of_an_evaluation() -> None:
    """Resize to 70 px, centre crop of 64: of a side of 96, the 88 px from the 4th on, within a pixel."""
    assert RECIPES["stl10"].centre == RECIPES["stl10"].for_evaluation().centre == pytest.approx(64 / 70)
    first, side = (70 - 64) / 2 * 96 / 70, 64 * 96 / 70
    top, left, height, width = centre_box((96, 96), RECIPES["stl10"].centre)
    assert abs(top - first) < 1 and top == left and abs(height - side) < 1 and height == width
    loader = centre_crops(blank(2), RECIPES["stl10"], 64, recipe("stl10", "-j", "1"), CPU)
    assert loader.eval_crop == pytest.approx(0.9143, abs=1e-4)
    assert Preprocessing.of_run({"recipe": "stl10"}, 64).crop == RECIPES["stl10"].centre
    of_others = {name: r.centre for name, r in RECIPES.items() if name != "stl10"}
    assert of_others == {name: 1.0 if name in ("cifar", "digits") else 0.875 for name in of_others}
