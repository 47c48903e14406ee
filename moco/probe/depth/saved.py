"""Resumes the depth probe, with the options of its earlier run."""

from __future__ import annotations

import dataclasses
import os

from moco.encoders.files import EncoderFile
from moco.encoders.preprocessing import suited, with_images_of
from moco.errors import InputError
from moco.probe.depth.options import DepthOptions
from moco.probe.saved import (
    BEST as BEST,
    LAST as LAST,
    check_arch_of,
    check_same,
    file_to_resume,
    name_for,
    network_for,
    seed_of,
)

# these define what is trained, so a resumed run must not change them
_SAME = ("features_from", "image_size", "batch_size", "adam_betas", "seed")


def predictor_to_resume(options: DepthOptions) -> EncoderFile | None:
    """Reads the checkpoint of --resume; 'auto' without one is a fresh start."""
    if options.evaluate and options.resume is None:
        raise InputError("--evaluate needs a trained predictor: pass --resume and a checkpoint of moco.probe.depth")
    file = file_to_resume(options.resume, options.output_dir)
    if file is not None and not {"moco_depth", "optimizer"} <= file.rest.keys():
        raise InputError(
            f"{file.path} holds an encoder ({file.layout}), not a depth predictor: pass it as --pretrained"
        )
    return file


def resolve(options: DepthOptions, origin: EncoderFile | None, resumed: bool) -> DepthOptions:
    """Fills open options from the encoder's run, then from the data set."""
    before = origin.options if origin else {}
    check_arch_of(origin, options.arch)
    options = dataclasses.replace(options, seed=seed_of(options.seed, before, resumed))
    if options.evaluate:
        options = dataclasses.replace(options, features_from=before.get("features_from", options.features_from))
    elif resumed and origin:
        check_same(options, origin, [name for name in _SAME if getattr(options, name) is not None])
    options = with_images_of(options, before)
    size, recipe = suited(options.dataset, before)
    arch, arch_arg = network_for(origin, options.arch, options.arch_arg, "smallalexnet")
    own = f"depth-{arch}-{options.features_from}-{name_for(origin)}".replace(":", "-")
    folder = options.output_dir or os.path.join("runs", own)
    if options.resume is None and os.path.exists(os.path.join(folder, LAST)):
        raise InputError(f"{folder} already holds a predictor: pass --resume auto to go on, or another --output-dir")
    return dataclasses.replace(
        options, arch=arch, arch_arg=arch_arg, image_size=options.image_size or size, recipe=options.recipe or recipe,
        output_dir=folder, pretrained=options.pretrained or (before.get("pretrained") if resumed else None),
    )  # fmt: skip
