"""Every measure of an encoder's features, on the validation images of a data set.

    python -m moco.evaluate runs/x/checkpoint_0199.pth.tar /data/imagenet100
    python -m moco.evaluate checkpoint.pth.tar --dataset digits --features-from trunk output --json measures.json

Reads any checkpoint that `main_lincls.py --pretrained` reads. Without --features-from it measures the trunk's features,
and the projection head's output where the checkpoint holds one. A measure that does not exist (no labels, one class,
...) is left out with its reason; it is never a number. The --json file:

    schema      1
    checkpoint  {"path", "layout", "arch", "epoch", "git", "options"}: the file and the run that wrote it, where it says
    data        {"dataset", "images", "train_images", "classes"}: counts, and the classes' names
    settings    knn_k, knn_t, align_alpha, unif_t, bins, seed, recipe, image_size
    spaces      {"trunk" | "output" | layer: {
                    "dim":       width,
                    "measures":  {name: number or null},       # accuracies in percent
                    "reasons":   {name: why it is null},
                    "uniformity_bounds": [lowest, highest],    # of a distribution in this dimension
                    "simplex_target": -1 / (classes - 1) or null,
                    "histograms": {"edges": [bins + 1], "positive", "negative": [bins], "same_class": [bins] or null}}}
    git, machine, command_seconds   of this measurement

All features are scaled to unit length first. Alignment and the histograms are of two augmented views of every
image, drawn from --seed; everything else is of the central square.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moco import distributed
from moco.data.augment import Augment
from moco.data.augment.recipes import find_recipe
from moco.data.datasets import DATASETS, has_split, open_split
from moco.data.source import Source, check_same_classes, labelled
from moco.distributed.session import pick_device
from moco.encoders import build_encoder
from moco.encoders.files import EncoderFile, load_trunk, read_encoder
from moco.encoders.preprocessing import suited
from moco.errors import EXIT_OK, InputError, exit_code
from moco.evaluate.features import centre_crops, encode, extract_features, in_order
from moco.evaluate.layers import OUTPUT, TRUNK, Layers, load_projection
from moco.evaluate.measures import measure
from moco.evaluate.online import shared_knn_accuracy
from moco.metrics.table import OF_FEATURES, Features
from moco.run.files import write_json
from moco.run.provenance import git_state, machine


def network(file: EncoderFile, o: argparse.Namespace) -> tuple[nn.Module, list[str]]:
    """The encoder in `file`, and the names of its features to measure."""
    arch = o.arch or file.arch
    if arch is None:
        raise InputError(f"{file.path} does not say which network it holds: pass --arch")
    encoder = build_encoder(arch, 1, image_size=o.image_size)
    load_trunk(encoder, file)
    projected = load_projection(encoder, file)
    names = list(dict.fromkeys(o.features_from or [TRUNK, OUTPUT][: 1 + projected]))
    if OUTPUT in names and not projected:
        raise InputError(f"{file.path} ({file.layout}) holds no projection head: leave out --features-from output")
    return encoder.requires_grad_(False).eval(), names


def evaluate(file: EncoderFile, o: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The content of the JSON file. `o`: the options of `main`; image_size and recipe None are found out here."""
    started = time.monotonic()
    size, recipe_name = suited(o.dataset, file.options)
    o.image_size, o.recipe = o.image_size or size, o.recipe or recipe_name
    recipe = find_recipe(o.recipe)
    encoder, names = network(file, o)
    val = open_split(o.data, o.dataset, "val", loader=o.loader, labels_required=False)
    bank: Source | None = None
    if (val.labels >= 0).any() and has_split(o.data, o.dataset, "train"):
        train = open_split(o.data, o.dataset, "train", loader=o.loader, labels_required=False)
        bank = labelled(train) if (train.labels >= 0).any() else None
        if bank is not None:
            check_same_classes(train, val)
    layers = Layers(encoder.to(device), names, o.image_size)
    plain = Augment(recipe.for_evaluation(), o.seed)
    x, labels = extract_features(layers, centre_crops(val, recipe, o.image_size, o, device), plain)
    pairs = in_order(val, o.image_size, o, device, views=2, scale=recipe.scale, ratio=recipe.ratio, seed=o.seed)
    views, _ = encode(layers, pairs, Augment(recipe, o.seed))
    of_bank = None
    if bank is not None:
        of_bank = extract_features(layers, centre_crops(bank, recipe, o.image_size, o, device), plain)
    spaces, start = {}, 0
    for name, width in zip(names, layers.widths, strict=True):
        part, start = slice(start, start + width), start + width
        q, k = F.normalize(views[..., part], dim=2).unbind(1)
        bank_x, bank_y = (F.normalize(of_bank[0][:, part], dim=1), of_bank[1]) if of_bank else (None, None)
        features = Features(
            F.normalize(x[:, part], dim=1), labels, q, k, bank_x, bank_y, len(val.classes), o.align_alpha, o.unif_t,
            partial(shared_knn_accuracy, classes=len(val.classes), k=o.knn_k, t=o.knn_t),
        )  # fmt: skip
        found = measure(features, o.bins)
        spaces[name] = {
            "dim": width,
            "measures": found.values,
            "reasons": found.reasons,
            "uniformity_bounds": list(found.bounds),
            "simplex_target": found.simplex_target,
            "histograms": found.histograms,
        }
    run = file.rest.get("moco_run") or file.rest.get("moco_lincls") or {}
    about = {"layout": file.layout, "arch": o.arch or file.arch, "epoch": file.epoch, "git": run.get("git")}
    settings = ("knn_k", "knn_t", "align_alpha", "unif_t", "bins", "seed", "recipe", "image_size")
    return {
        "schema": 1,
        "checkpoint": {"path": str(file.path), **about, "options": file.options},
        "data": {
            "dataset": o.dataset, "images": len(labels), "train_images": len(of_bank[1]) if of_bank else 0,
            "classes": list(val.classes),
        },
        "settings": {name: getattr(o, name) for name in settings},
        "spaces": spaces,
        "git": git_state(),
        "machine": machine(device),
        "command_seconds": time.monotonic() - started,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The measures for people: a line each, a column for each kind of features, what is missing below."""
    spaces, data, how = found["spaces"], found["data"], found["settings"]
    k = min(how["knn_k"], data["train_images"] or how["knn_k"])
    epoch = f", epoch {found['checkpoint']['epoch']}" if found["checkpoint"]["epoch"] is not None else ""
    lines = [
        f"{found['checkpoint']['path']}: {found['checkpoint']['arch']}{epoch} ({found['checkpoint']['layout']})",
        f"{data['dataset']}: {data['images']} validation images, {data['train_images']} training images for kNN,"
        f" {len(data['classes'])} classes; kNN with k {k}, t {how['knn_t']:g}; alignment with"
        f" α {how['align_alpha']:g}; uniformity with t {how['unif_t']:g}",
        f"{'':36}" + "".join(f"{name + ' (' + str(space['dim']) + ')':>22}" for name, space in spaces.items()),
    ]
    for name, row in OF_FEATURES.items():
        title = f"{row.heading} ({row.beside})" if row.beside else row.heading
        lines.append(f"{title:36}" + "".join(f"{_cell(space, name):>22}" for space in spaces.values()))
    if 0 < data["train_images"] < how["knn_k"]:
        lines.append(f"k is {k}, not {how['knn_k']}: there are no more training images")
    reasons = {reason: None for space in spaces.values() for reason in space["reasons"].values()}
    return "\n".join([*lines, *(f"– not measured: {reason}" for reason in reasons)])


def _cell(space: dict[str, Any], name: str) -> str:
    value = space["measures"][name]
    if value is None:
        return "–"
    beside = {"uniformity": space["uniformity_bounds"][0], "simplex_cosine": space["simplex_target"]}.get(name)
    return f"{value:.4g}" + (f" ({beside:.4g})" if beside is not None else "")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="moco-evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="file of any layout that main_lincls.py --pretrained reads")
    parser.add_argument("data", nargs="?", help="as for main_lincls.py: a folder with train/ and val/, a .beton file")
    parser.add_argument("--dataset", default="folder", choices=DATASETS, help="which data (%(default)s)")
    parser.add_argument("--features-from", nargs="+", metavar="WHICH", help="trunk, output, names of layers")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there, histograms included")
    parser.add_argument("--knn-k", type=int, default=200, help="neighbours that vote (%(default)s)")
    parser.add_argument("--knn-t", type=float, default=0.1, help="temperature of their weights (%(default)s)")
    parser.add_argument("--align-alpha", type=float, default=2.0, help="exponent of alignment (%(default)s)")
    parser.add_argument("--unif-t", type=float, default=2.0, help="t of uniformity (%(default)s)")
    parser.add_argument("--bins", type=int, default=100, help="of the histograms (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the augmented views (%(default)s)")
    parser.add_argument("-a", "--arch", help="the network, where the checkpoint does not say")
    parser.add_argument("--image-size", type=int, help="side in pixels; default: the run's, or the data set's")
    parser.add_argument("--recipe", help="augmentations of the views, and normalisation; default: the run's")
    parser.add_argument("--loader", default="auto", choices=("auto", "ffcv", "folder"), help="(%(default)s)")
    parser.add_argument("-j", "--workers", type=int, help="decoding threads (default: all cores it may use)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--skip-bad-images", action="store_true", help="leave out images that cannot be read")

    def run() -> int:
        options = parser.parse_args(argv)
        if options.dataset in ("folder", "imagenet100") and options.data is None:
            raise InputError("say where the images are: a folder with val/, or --dataset digits for the embedded data")
        for name in ("knn_k", "knn_t", "align_alpha", "unif_t", "bins", "image_size", "workers"):
            if (value := getattr(options, name)) is not None and not 0 < value < math.inf:
                raise InputError(f"--{name.replace('_', '-')} must be greater than 0, not {value:g}")
        device = pick_device(options.device)
        with distributed.session(device):
            found = evaluate(read_encoder(options.checkpoint), options, device)
            if distributed.rank() == 0:
                if options.json:
                    write_json(options.json, found)
                print(table(found))
        return EXIT_OK

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
