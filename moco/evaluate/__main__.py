"""Measures an encoder's features on the validation images of a data set.

    python -m moco.evaluate runs/x/checkpoint_0199.pth.tar /data/imagenet100
    python -m moco.evaluate checkpoint.pth.tar --dataset digits --features-from trunk output --json measures.json

Reads any checkpoint that `main_lincls.py --pretrained` reads. Without --features-from it measures the trunk's features,
and the projection head's output where the checkpoint holds one. A measure that does not exist (no labels, one class,
...) is null in the --json file, with its reason. The --json file:

    schema      1
    checkpoint  {"path", "layout", "arch", "epoch", "git", "options"}: the file and, if known, the run that wrote it
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
image, drawn from --seed. All other measures are of the central square.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moco import distributed
from moco.commands import end_with, run_command
from moco.data.augment import Augment
from moco.data.source import Source, check_same_classes, labelled
from moco.distributed.session import pick_device
from moco.encoders import build_encoder
from moco.encoders.files import EncoderFile, load_trunk, network_of, read_encoder
from moco.encoders.preprocessing import suited, with_images_of
from moco.errors import EXIT_OK, InputError
from moco.evaluate.features import centre_crops, encode, extract_features, in_order
from moco.evaluate.layers import OUTPUT, TRUNK, Layers, load_projection
from moco.evaluate.measures import measure
from moco.evaluate.online import shared_knn_accuracy
from moco.evaluate.options import EvaluateOptions, parse_evaluate
from moco.metrics.table import OF_FEATURES, Features
from moco.run.files import write_json
from moco.run.provenance import git_state, machine
from moco.world import World


def network(file: EncoderFile, o: EvaluateOptions) -> tuple[nn.Module, list[str]]:
    """Builds the encoder in `file`; returns it and the features' names."""
    arch, arch_arg = network_of(file, o.arch, o.arch_arg)
    encoder = build_encoder(arch, 1, image_size=o.image_size, arguments=arch_arg, channels=o.pixel_format.channels)
    load_trunk(encoder, file)
    projected = load_projection(encoder, file)
    names = list(dict.fromkeys(o.features_from or [TRUNK, OUTPUT][: 1 + projected]))
    if OUTPUT in names and not projected:
        raise InputError(f"{file.path} ({file.layout}) holds no projection head: leave out --features-from output")
    return encoder.requires_grad_(False).eval(), names


def evaluate(file: EncoderFile, o: EvaluateOptions, device: torch.device) -> dict[str, Any]:
    """Measures the encoder; returns the content of the JSON file.

    Where `o` has None, image size and recipe are those of the run.
    """
    started = time.monotonic()
    usual_size, usual_recipe = suited(o.dataset, file.options)
    size = o.image_size or usual_size
    o = dataclasses.replace(with_images_of(o, file.options), image_size=size, recipe=o.recipe or usual_recipe)
    crop_min = file.options.get("crop_min") if o.recipe == usual_recipe else None
    recipe = o.find_recipe(o.recipe or usual_recipe, crop_min)
    encoder, names = network(file, o)
    val = o.open("val", labels_required=False)
    bank = bank_for(val, o)
    layers = Layers(encoder.to(device), names, size)
    plain = Augment(recipe.for_evaluation(), o.seed)
    x, labels = extract_features(layers, centre_crops(val, recipe, size, o, device), plain)
    pairs = in_order(val, size, o, device, views=2, scale=recipe.scale, ratio=recipe.ratio, seed=o.seed)
    views, _ = encode(layers, pairs, Augment(recipe, o.seed))
    of_bank = None
    if bank is not None:
        of_bank = extract_features(layers, centre_crops(bank, recipe, size, o, device), plain)
    of_all = AllFeatures(x, labels, views, of_bank, len(val.classes))
    run = file.rest.get("moco_run") or file.rest.get("moco_lincls") or {}
    about = {"layout": file.layout, "arch": o.arch or file.arch, "epoch": file.epoch, "git": run.get("git")}
    settings = ("knn_k", "knn_t", "align_alpha", "unif_t", "bins", "seed", "recipe", "image_size")
    return {
        "schema": 1,
        "checkpoint": {"path": str(file.path), **about, "options": file.options},
        "data": {
            "dataset": o.dataset,
            "images": len(labels),
            "train_images": len(of_bank[1]) if of_bank else 0,
            "classes": list(val.classes),
        },
        "settings": {name: getattr(o, name) for name in settings},
        "spaces": measure_spaces(of_all, dict(zip(names, layers.widths, strict=True)), o),
        "git": git_state(),
        "machine": machine(device),
        "command_seconds": time.monotonic() - started,
    }


def bank_for(val: Source, o: EvaluateOptions) -> Source | None:
    """Returns the labelled training images for kNN.

    None if these images or the labels of `val` are missing.
    """
    if not (val.labels >= 0).any() or not o.has("train"):
        return None
    train = o.open("train", labels_required=False)
    if not (train.labels >= 0).any():
        return None
    bank = labelled(train)
    check_same_classes(bank, val)
    return bank


@dataclasses.dataclass
class AllFeatures:
    """Holds the features of every measured layer, side by side.

    The last dimension has width W, the sum of the layers' widths. x: of the central squares, [n, W]. views: of two
    augmented views, [n, 2, W]. bank: of the training images, ([m, W], labels [m]), or None.
    """

    x: Tensor
    labels: Tensor
    views: Tensor
    bank: tuple[Tensor, Tensor] | None
    classes: int


def measure_spaces(of_all: AllFeatures, widths: dict[str, int], o: EvaluateOptions) -> dict[str, Any]:
    """Returns the "spaces" of the JSON file.

    widths: the width of each layer's features, in the order of the layers in `of_all`.
    """
    knn = partial(shared_knn_accuracy, classes=of_all.classes, k=o.knn_k, t=o.knn_t)
    spaces = {}
    start = 0
    for name, width in widths.items():
        part = slice(start, start + width)
        start = start + width
        q, k = F.normalize(of_all.views[..., part], dim=2).unbind(1)
        x = F.normalize(of_all.x[:, part], dim=1)
        bank_x, bank_y = None, None
        if of_all.bank is not None:
            bank_x = F.normalize(of_all.bank[0][:, part], dim=1)
            bank_y = of_all.bank[1]
        features = Features(x, of_all.labels, q, k, bank_x, bank_y, of_all.classes, o.align_alpha, o.unif_t, knn)
        found = measure(features, o.bins)
        spaces[name] = {
            "dim": width,
            "measures": found.values,
            "reasons": found.reasons,
            "uniformity_bounds": list(found.bounds),
            "simplex_target": found.simplex_target,
            "histograms": found.histograms,
        }
    return spaces


def table(found: dict[str, Any]) -> str:
    """Formats the measures as a table.

    It has a row for each measure and a column for each kind of features. Reasons for missing measures come below.
    """
    spaces = found["spaces"]
    data = found["data"]
    how = found["settings"]
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
    def run() -> int:
        options = parse_evaluate(argv)
        world = World.launched()
        device = pick_device(options.device, world)
        with distributed.session(world, device):
            found = evaluate(read_encoder(options.checkpoint), options, device)
            if world.rank == 0:
                if options.json:
                    write_json(options.json, found)
                print(table(found))
        return EXIT_OK

    return run_command(run)


def script() -> NoReturn:
    """Runs the console script."""
    end_with(main)


if __name__ == "__main__":
    end_with(main)
