"""Compares 24 classifiers trained at once with 24 probes by MoCo's protocol.

    python -m benchmarks.linear_probe                                             # the digits, smallcnn
    python -m benchmarks.linear_probe DATA --dataset folder -a resnet18 --image-size 64   # DATA: Imagenette

Both choose a learning rate and a weight decay. Four things are timed in turns:
  one epoch of MoCo's probe: crops, trunk, one classifier
  one epoch of `--sweep`: the same with 24 classifiers
  one pass that computes all features
  one epoch of `--sweep --cached` on these features
A probe takes EPOCHS times the time of its epoch. This is extrapolated, because every epoch is the same work.
With --images the first three are timed on so many images, and scaled to all of them.
The encoder is untrained, which changes no time. Evaluation is not timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Row, alternate, device_of, parser, report
from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.datasets import DATASETS, open_split
from moco.data.source import Source, Subset
from moco.evaluate.features import centre_crops, extract_features
from moco.probe.__main__ import protocol_of
from moco.probe.model import Rows, Setup, build
from moco.probe.options import LinclsOptions, parse_lincls
from moco.probe.saved import resolve
from moco.probe.training import Probe, make_optimizer
from moco.run.log import RunLog

EPOCHS = 100


class KnownFeatures(Setup):
    """Uses features that were computed before."""

    known: Rows | None = None

    def features_of(self, source: Source) -> Rows:
        return self.known or super().features_of(source)


def contender(
    options: LinclsOptions, source: Source, device: torch.device, folder: Path, features: Rows | None = None
) -> Callable[[], Any]:
    """Returns a function that trains an epoch as main_lincls.py does.

    features: those of the images, if they are cached.
    """
    recipe = find_recipe(options.recipe or "")
    protocol = protocol_of(options)
    settings = protocol.settings()
    model = build(options, None, recipe, source, len(source.classes), len(settings), device)
    setup = KnownFeatures(options, device, recipe, source, None, source, model)
    setup.known = features
    stream = protocol.stream(setup)
    optimizer, rates = make_optimizer(options, settings, model.classifiers, None)
    silent = RunLog(folder, rank=1)
    probe = Probe(options, device, model.encoder, model.classifiers, None, optimizer, rates, stream, silent)
    return lambda: probe.one_epoch(0)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("data", nargs="?")
    options.add_argument("--dataset", default="digits", choices=DATASETS)
    options.add_argument("-a", "--arch", default="smallcnn")
    options.add_argument("--image-size", type=int, default=32)
    options.add_argument("-b", "--batch-size", type=int, default=256)
    options.add_argument("--images", type=int, help="of the training images, time so many; default: all")
    options.set_defaults(rounds=5)
    return options.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    o = arguments(argv)
    device = device_of(o)
    given = ["--dataset", o.dataset, "-a", o.arch, "--image-size", str(o.image_size), "-b", str(o.batch_size)]
    given += ["--seed", "0", "--device", o.device, "--lr", "0.1", "--output-dir", "not-written"]
    plain = resolve(parse_lincls([*([o.data] if o.data else []), *given]), None, False)
    # small rates: an untrained trunk's features are large, and a classifier that diverges would end the epoch
    sweep = dataclasses.replace(plain, sweep=True, sweep_lrs=[0.001 * 2**i for i in range(8)])
    train = open_split(o.data, o.dataset, "train")
    total = len(train)
    timed = 64 if o.trial else min(o.images or total, total)
    part = Subset(train, np.linspace(0, total - 1, timed).astype(np.int64))
    recipe = find_recipe(plain.recipe or "")
    network = build(plain, None, recipe, part, len(train.classes), 1, device).network

    def extract() -> Rows:
        crops = centre_crops(part, recipe, o.image_size, plain, device)
        return extract_features(network, crops, Augment(recipe.for_evaluation(), 0))

    x, labels = extract()
    again = -(-total // timed)
    all_features = x.repeat(again, 1)[:total], labels.repeat(again)[:total]
    cached = dataclasses.replace(sweep, cached=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = {
            "probe": contender(plain, part, device, folder),
            "sweep": contender(sweep, part, device, folder),
            "features": extract,
            "cached": contender(cached, part, device, folder, all_features),
        }
        times = alternate(contenders, 1 if o.trial else o.rounds, device, warm=1)
    count, up = len(protocol_of(sweep).settings()), total / timed
    rounds = list(zip(*(times[name] for name in contenders), strict=True))
    by_protocol = [count * EPOCHS * up * probe for probe, _, _, _ in rounds]
    at_once = [EPOCHS * up * one for _, one, _, _ in rounds]
    on_cached = [up * features + EPOCHS * one for _, _, features, one in rounds]
    hours = f"{count} probes of {EPOCHS} epochs: {statistics.median(by_protocol) / 3600:.3g} h (extrapolated)"
    rows = [
        Row(f"--sweep --cached, {count} classifiers, time saved", hours,
            statistics.median(a / b for a, b in zip(by_protocol, on_cached, strict=True)), at_least=50),
        Row(f"--sweep, {count} classifiers, time saved", hours,
            statistics.median(a / b for a, b in zip(by_protocol, at_once, strict=True))),
        Row("--sweep --cached, features and all epochs", "–", statistics.median(on_cached), "s"),
    ]  # fmt: skip
    settings = {
        "dataset": o.dataset, "training_images": total, "images_timed": timed, "classes": len(train.classes),
        "arch": o.arch, "image_size": o.image_size, "batch_size": o.batch_size, "epochs": EPOCHS, "classifiers": count,
        "feature_dim": x.shape[1], "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(f"{o.arch}, {o.image_size} px, {timed} of {total} images timed; seconds for an epoch: "
          + ", ".join(f"{name} {statistics.median(seconds):.3g}" for name, seconds in times.items()))  # fmt: skip
    report("linear_probe", o, rows, seconds=times, settings=settings)


if __name__ == "__main__":
    main()
