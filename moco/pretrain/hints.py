"""Explains the first losses, and names the command after the run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from moco.data.channels import MEASUREMENT_SUFFIXES
from moco.plugins import is_outside
from moco.pretrain.options import PretrainOptions
from moco.run.checkpoint import checkpoint_name
from moco.schedules import values_of


def first_losses(options: PretrainOptions, steps_done: int) -> list[str]:
    """Returns InfoNCE's value at chance, until the queue has been filled."""
    keys_per_step = options.batch_size * (2 if options.symmetric and not options.queue_per_view else 1)
    if not options.moco_k or steps_done * keys_per_step >= options.moco_k or options.loss != "infonce":
        return []
    return [
        f"InfoNCE at chance is log(K + 1) = {math.log(options.moco_k + 1):.2f}; the loss rises while the queue fills"
        f" with real keys, which takes {math.ceil(options.moco_k / keys_per_step)} steps"
    ]


def channels_not_rgb(options: PretrainOptions, paths: Sequence[str] = ()) -> list[str]:
    """Returns the augmentations for images that are not RGB; nothing for RGB.

    paths: of the images. If they may hold measurements, a line says that three channels count as RGB.
    """
    if options.channels in (None, 3) and not options.not_rgb:
        measured = sum(path.lower().endswith(MEASUREMENT_SUFFIXES) for path in paths)
        colours = any(view.changes_colour for view in options.find_recipe(str(options.recipe)).views)
        if not (measured and colours):
            return []
        return [
            f"{measured} of the images are TIFF files or arrays, whose three channels count as RGB: pass --not-rgb if"
            " they are no colours, so that hue, saturation and grey are left out"
        ]
    which = "--not-rgb" if options.not_rgb else f"--channels {options.channels}"
    return [
        f"{which}: hue, saturation and grey of --recipe {options.recipe} are for RGB, left out;"
        " crop, flip, brightness, contrast, blur and the like stay",
        f"normalised with --mean {options.mean} --std {options.std}; `python -m moco.data.stats` measures those of your"
        " images",
    ]


def collapse_ahead(options: PretrainOptions) -> list[str]:
    """Warns if the hard loss may collapse, with a fast key encoder.

    It did in docs/results.md.
    """
    lowest = min(values_of(options.moco_m))
    if options.loss != "hard" or options.moco_hard_alpha >= 0.5 or lowest >= 0.99:
        return []
    return [
        f"--loss hard with --moco-m {lowest:g} may collapse: with 0.9 it did on small photographs, with 0.99 it"
        " trained; raise --moco-m, or --moco-hard-alpha to 0.5 or more"
    ]


def next_command(options: PretrainOptions) -> str:
    """Returns the command for the probe of the last checkpoint.

    Without validation images it is the export.
    """
    path = Path(options.output_dir) / checkpoint_name(options.epochs - 1)
    if not options.has("val"):
        return f"done; next, for other programs: {shlex.join(['python', '-m', 'moco.export', str(path)])}"
    if options.dataset == "nyu-depth":
        command = ["python", "-m", "moco.probe.depth", "--pretrained", str(path), str(options.data)]
        return f"done; next, the depth probe: {shlex.join(command)}"
    words = ["python", "main_lincls.py", "--pretrained", str(path)]
    if options.dataset != "folder":
        words += ["--dataset", options.dataset]
    for argument in options.dataset_arg:
        words += ["--dataset-arg", argument]
    if is_outside(options.arch):
        words += ["--arch", options.arch]
    if options.data is not None:
        words.append(options.data)
    return f"done; next, the linear probe: {shlex.join(words)}"
