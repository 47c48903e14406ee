"""What an earlier run of the depth probe left, and how its options decide those of this one."""

from __future__ import annotations

import dataclasses
import os
import random

from moco.encoders.files import EncoderFile, network_of, read_encoder
from moco.encoders.preprocessing import suited, with_images_of
from moco.errors import InputError, flag
from moco.probe.depth.options import DepthOptions

LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"
# what is trained: to go on with others would be to start something else
_SAME = ("features_from", "image_size", "batch_size", "adam_betas", "seed")


def predictor_to_resume(options: DepthOptions) -> EncoderFile | None:
    """The checkpoint of this command that --resume means; 'auto' with nothing there is a fresh start."""
    if options.evaluate and options.resume is None:
        raise InputError("--evaluate needs a trained predictor: pass --resume and a checkpoint of moco.probe.depth")
    path = os.path.join(options.output_dir, LAST) if options.resume == "auto" else options.resume
    if path is None or (options.resume == "auto" and not os.path.exists(path)):
        return None
    file = read_encoder(path)
    if "moco_depth" not in file.rest or "optimizer" not in file.rest:
        raise InputError(f"{path} holds an encoder ({file.layout}) and no depth predictor: pass it as --pretrained")
    return file


def resolve(options: DepthOptions, origin: EncoderFile | None, resumed: bool) -> DepthOptions:
    """Fills open options from the encoder's run, then from the data set."""
    before = origin.options if origin else {}
    if origin and origin.arch and options.arch not in (None, origin.arch):
        raise InputError(f"{origin.path} holds a {origin.arch}, not a {options.arch}: pass --arch {origin.arch}")
    seed = before.get("seed") if options.seed is None and resumed else options.seed
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    options = dataclasses.replace(options, seed=seed)
    if options.evaluate:
        options = dataclasses.replace(options, features_from=before.get("features_from", options.features_from))
    elif resumed and origin:
        for name in _SAME:
            if getattr(options, name) is not None and before.get(name) != getattr(options, name):
                raise InputError(
                    f"{origin.path} was trained with {flag(name)} {before[name]}; pass the same,"
                    " or another --output-dir"
                )
    options = with_images_of(options, before)
    size, recipe = suited(options.dataset, before)
    arch = options.arch or "smallalexnet"
    arch_arg = options.arch_arg
    if origin and (origin.arch or options.arch):
        arch, arch_arg = network_of(origin, options.arch, options.arch_arg)
    name = f"{origin.path.absolute().parent.name}-{origin.path.name.split('.')[0]}" if origin else "untrained"
    own = f"depth-{arch}-{options.features_from}-{name}".replace(":", "-")
    folder = options.output_dir or os.path.join("runs", own)
    if options.resume is None and os.path.exists(os.path.join(folder, LAST)):
        raise InputError(f"{folder} already holds a predictor: pass --resume auto to go on, or another --output-dir")
    return dataclasses.replace(
        options, arch=arch, arch_arg=arch_arg, image_size=options.image_size or size, recipe=options.recipe or recipe,
        output_dir=folder, pretrained=options.pretrained or (before.get("pretrained") if resumed else None),
    )  # fmt: skip
