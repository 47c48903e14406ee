#!/usr/bin/env python
"""Draws features on a circle: untrained, supervised and contrastive.

    python examples/circle.py --output circle.png

Source: Wang & Isola (2020), figure 3.
Three small encoders of scikit-learn's digits have outputs in two dimensions, which lie on the circle after
normalisation. One is untrained. One is trained with labels, by a linear classifier on the normalised output.
One is trained with MoCo's contrastive loss by `main_moco.py`.
The figure shows the held-out scans: their positions, the distances of two augmented views of a scan (alignment), and
the distribution of the angles (uniformity).
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.datasets import open_split
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.encoders import build_encoder
from moco.evaluate.features import centre_crops, encode, extract_features, in_order, settle_batchnorm
from moco.metrics import alignment, uniformity
from moco.pretrain.__main__ import main as pretrain
from moco.pretrain.options import parse_pretrain
from moco.report.plots import CLASS_COLOURS, INK, RUN_COLOURS, plain_axes, write_figure
from moco.run import checkpoint

SIZE, BATCH = 32, 128
FLAGS = (
    "--dataset digits -a smallcnn --moco-dim 2 --moco-k 256 --moco-m 0.9 --moco-t 0.2 -j 1 --seed 0 --no-tensorboard"
)
CONTRASTIVE = f"{FLAGS} -b {BATCH} --lr 0.06 --cos --eval-freq 0 --print-freq 1000 --save-freq 1000"
CPU = torch.device("cpu")


@dataclass
class OnCircle:
    """Holds the points of one encoder.

    x: unit vectors [n, 2] of the scans. labels: their digits [n].
    q, k: unit vectors [n, 2] of two views of each scan.
    """

    name: str
    x: torch.Tensor
    labels: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor


def untrained() -> nn.Module:
    """Makes an untrained encoder, with BatchNorm statistics of the data.

    The other encoders have such statistics too.
    """
    torch.manual_seed(0)
    encoder = build_encoder("smallcnn", 2)
    options = parse_pretrain(shlex.split(CONTRASTIVE))
    settle_batchnorm(encoder, open_split(None, "digits", "train"), find_recipe("digits"), SIZE, options, CPU)
    return encoder


def supervised(epochs: int) -> nn.Module:
    """Trains an encoder and a linear classifier together, with labels.

    The loss is cross-entropy. The augmentations are those of the contrastive encoder.
    """
    torch.manual_seed(0)
    train, recipe = open_split(None, "digits", "train"), find_recipe("digits")
    encoder, classifier = build_encoder("smallcnn", 2), nn.Linear(2, len(train.classes))
    sampler, augment = Sampler(len(train), BATCH, 0), Augment(recipe, 0)
    loader = Loader(train, sampler, size=SIZE, views=1, scale=recipe.scale, ratio=recipe.ratio, workers=1, device=CPU)
    optimizer = torch.optim.SGD(
        [*encoder.parameters(), *classifier.parameters()], 0.06, momentum=0.9, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        with contextlib.closing(loader.epoch(epoch)) as batches:
            for batch in batches:
                x = F.normalize(encoder(augment(batch.crops[:, 0], batch.index, epoch)), dim=1)
                loss = F.cross_entropy(classifier(x), batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        schedule.step()
    return encoder


def contrastive(epochs: int) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        if pretrain([*shlex.split(CONTRASTIVE), "--epochs", str(epochs), "--output-dir", folder]):
            sys.exit("the contrastive run failed")
        state = checkpoint.load(Path(folder) / checkpoint.checkpoint_name(epochs - 1))["state_dict"]
    encoder, prefix = build_encoder("smallcnn", 2), "module.encoder_q."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return encoder


def on_circle(name: str, encoder: nn.Module) -> OnCircle:
    options, recipe = parse_pretrain(shlex.split(CONTRASTIVE)), find_recipe("digits")
    val = open_split(None, "digits", "val")
    plain, augment = Augment(recipe.for_evaluation(), 0), Augment(recipe, 0)
    x, labels = extract_features(encoder, centre_crops(val, recipe, SIZE, options, CPU), plain, normalise=True)
    pairs = in_order(val, SIZE, options, CPU, views=2, scale=recipe.scale, ratio=recipe.ratio, seed=0)
    q, k = F.normalize(encode(encoder, pairs, augment)[0], dim=2).unbind(1)
    return OnCircle(name, x, labels, q, k)


def draw(encoders: list[OnCircle], path: Path) -> Path:
    figure = Figure(figsize=(4 * len(encoders), 9), dpi=130, layout="constrained")
    grid = figure.subplots(3, len(encoders), height_ratios=(1.7, 1, 1))
    for column, one in enumerate(encoders):
        _circle(grid[0, column], one)
        for row, (values, bins, x, text) in enumerate(_histograms(one), start=1):
            axes = grid[row, column]
            axes.hist(values, bins=bins, density=True, color=RUN_COLOURS[0], alpha=0.75)
            plain_axes(axes, text, x, "density" if column == 0 else "")
            axes.set_xlim(bins[0], bins[-1])
            axes.locator_params(axis="x", nbins=4)
        grid[2, column].set_xticks([-np.pi, 0, np.pi], ["-π", "0", "π"])
        grid[2, column].axhline(1 / (2 * np.pi), color=INK, linewidth=1, linestyle="--")  # all angles equally frequent
    return write_figure(figure, path)


def _histograms(one: OnCircle) -> list[tuple[np.ndarray, np.ndarray, str, str]]:
    apart = (one.q - one.k).norm(dim=1).numpy()
    angle = torch.atan2(one.x[:, 1], one.x[:, 0]).numpy()
    return [
        (apart, np.linspace(0, 2, 41), "distance of two views of a scan", f"alignment {alignment(one.q, one.k):.3f}"),
        (angle, np.linspace(-np.pi, np.pi, 49), "angle", f"uniformity {uniformity(one.x):.3f}"),
    ]


def _circle(axes: Axes, one: OnCircle) -> None:
    """Draws the points of each class on a ring of its own.

    So points do not hide one another. The outer line is the unit circle.
    """
    turn = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(turn), np.sin(turn), color=INK, linewidth=1)
    for label in range(10):
        mine = one.x[one.labels == label].numpy() * (0.97 - 0.05 * label)
        axes.scatter(mine[:, 0], mine[:, 1], s=13, color=CLASS_COLOURS[label], alpha=0.75, linewidths=0)
        mean = one.x[one.labels == label].mean(0)
        if mean.norm() > 0.5:  # a class all around the circle has no place for its name
            x, y = (1.1 * F.normalize(mean, dim=0)).tolist()
            outline = [patheffects.withStroke(linewidth=3, foreground="white")]
            axes.text(x, y, str(label), ha="center", va="center", weight="bold", color=CLASS_COLOURS[label],
                      fontsize=12, path_effects=outline)  # fmt: skip
    axes.set_title(one.name, fontsize=13, weight="bold", color=INK)
    axes.set(xlim=(-1.22, 1.22), ylim=(-1.22, 1.22), aspect="equal")
    axes.set_axis_off()


def main(argv: list[str] | None = None) -> list[OnCircle]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("circle.png"), help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="of either training (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    encoders = [
        on_circle("untrained", untrained()),
        on_circle("supervised", supervised(arguments.epochs)),
        on_circle("contrastive", contrastive(arguments.epochs)),
    ]
    for one in encoders:
        print(f"{one.name:12} alignment {alignment(one.q, one.k):.3f}  uniformity {uniformity(one.x):.3f}")
    print(draw(encoders, arguments.output))
    return encoders


if __name__ == "__main__":
    main()
