"""Writes encoders in other projects' formats; each project's library verifies them.

    python -m moco.export runs/x/checkpoint_0199.pth.tar --to torchvision
    python -m moco.export runs/lincls/model_best.pth.tar --to huggingface --output-dir cards/v2 --licence mit
    python -m moco.export runs/x/checkpoint_0199.pth.tar --push-to-hub USER/NAME --licence mit

A checkpoint of pretraining gives the trunk, one of main_lincls.py the trunk with its classifier. The result is a
folder: the weights in the format's layout, and `metadata.json`. It is first written under a temporary name. The
format's library opens it, and its outputs on photographs are compared. Only then the folder gets its name.
`moco.encoders.files` reads such files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from moco.commands import Number, Parser, end_with, run_command
from moco.encoders import build_encoder, classifier_name, feature_dim
from moco.encoders.containers import METADATA
from moco.encoders.files import EncoderFile, load_trunk, network_of, read_encoder
from moco.encoders.preprocessing import Preprocessing
from moco.errors import EXIT_OK, InputError
from moco.export.formats import FORMATS, Exported
from moco.export.hub import check_name, push

TOLERANCE = 1e-5  # largest difference of an output, relative to the largest output (at least 1): rounding of fp32
# These options are not published: they describe the machine of the run.
_PRIVATE = ("data", "output_dir", "resume", "config", "wandb", "pretrained", "init_from", "workers", "device", "loader")


@dataclass(frozen=True)
class Result:
    """Holds the result of an export.

    difference: the largest one, relative as `TOLERANCE` is. verified_by: library and version.
    """

    folder: Path
    file: Path
    verified_by: str
    difference: float
    usage: str


def photographs(how: Preprocessing, count: int = 8) -> Tensor:
    """Returns fp32 [count, C, S, S]: squares of scikit-learn's two photographs.

    `how` prepares them.
    """
    from sklearn.datasets import load_sample_images

    pictures = [np.array(image) for image in load_sample_images().images]
    crops = []
    for i in range(count):
        image = pictures[i % 2]
        side = min(image.shape[:2]) * (i + 4) // (count + 4)
        top = (image.shape[0] - side) * i // count
        left = (image.shape[1] - side) * (count - i) // count
        square = image[top : top + side, left : left + side]
        crops.append(how(square[..., [channel % 3 for channel in range(len(how.mean))]]))
    return torch.stack(crops)


def prepare(
    file: EncoderFile,
    *,
    arch: str | None = None,
    arch_arg: Sequence[str] = (),
    image_size: int | None = None,
    recipe: str | None = None,
    classifier: bool = True,
    licence: str = "other",
) -> Exported:
    """Builds the network in `file`, and collects what is known about it.

    The arguments override what the file says.
    """
    arch, arch_arg = network_of(file, arch, arch_arg)
    how = Preprocessing.of_run(file.options, image_size, recipe)
    options = file.options | {"image_size": how.size} | ({"recipe": recipe} if recipe else {})
    classes = _classes(file) if classifier else None
    encoder = build_encoder(
        arch, len(classes or "1"), image_size=how.size, arguments=arch_arg, channels=how.pixels.channels
    )
    load_trunk(encoder, file)
    if classes:
        prefix = classifier_name(encoder) + "."
        head = {key.removeprefix(prefix): value for key, value in file.state.items() if key.startswith(prefix)}
        encoder.get_submodule(classifier_name(encoder)).load_state_dict(head)
    run = file.rest.get("moco_run") or file.rest.get("moco_lincls") or {}
    about: dict[str, Any] = {
        "arch": arch,
        "feature_dim": feature_dim(encoder),
        "classes": classes,
        "epoch": file.epoch,
        "loss": file.options.get("loss"),
        "recipe": options.get("recipe"),
        "git": run.get("git"),
        "licence": licence,
        "source": f"{file.path.name} ({file.layout})",
        "preprocessing": how.as_dict(),
        "options": {key: value for key, value in options.items() if key not in _PRIVATE and value is not None},
    }
    return Exported(arch, encoder.eval(), classes, how, about, arch_arg)


def _classes(file: EncoderFile) -> list[str] | None:
    """Returns the class names of the linear classifier in `file`.

    main_lincls.py wrote it, here or in MoCo. None for another file, or if it reads other features than the trunk's.
    """
    ours = file.rest.get("moco_lincls", {})
    if "best_acc1" not in file.rest or "classifier" in ours:
        return None
    told = ours.get("classes")
    weight = next(value for key, value in reversed(file.state.items()) if key.endswith("weight"))
    return list(told) if told else [str(number) for number in range(len(weight))]


def export(x: Exported, to: str, folder: str | Path) -> Result:
    """Writes `x` in the format `to` into the new `folder`.

    InputError, and no folder, if the format's library does not read back the same function.
    """
    form = FORMATS[to]
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} exists already: remove it or pass another --output-dir")
    if missing := form.missing():
        raise InputError(f"--to {to} needs packages that are not installed: pip install {' '.join(missing)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".exporting", dir=folder.parent))
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; pass another --output-dir") from error
    try:
        form.write(x, workplace / form.file)
        images = photographs(x.preprocessing)
        difference = compare(x, form.reload(x, workplace / form.file), images)
        about = {"format": to, "file": form.file, "verified_by": form.verifier(), "difference": difference, **x.about}
        (workplace / METADATA).write_text(json.dumps(about, indent=2) + "\n")
        for path in workplace.iterdir():
            path.chmod(0o644)
        workplace.chmod(0o755)  # mkdtemp and safetensors let only their owner read
        os.replace(workplace, folder)
    except InputError:
        raise
    except Exception as error:  # any error of the other library: the export has failed
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{x.arch} cannot go to {to}: {form.verifier()} does not read it back ({why})") from error
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    file = folder / form.file
    timm = x.arch.removeprefix("timm:")
    arch = x.arch
    in_chans = "" if x.channels == 3 else f", in_chans={x.channels}"
    usage = form.usage.format(file=str(file), folder=folder, timm=timm, arch=arch, outputs=x.outputs, in_chans=in_chans)
    return Result(folder, file, form.verifier(), difference, usage)


@torch.no_grad()
def compare(x: Exported, other: Any, images: Tensor) -> float:
    """Returns the largest difference of outputs, relative to the largest output.

    ValueError if it is above TOLERANCE.
    """
    mine = x.network(images)
    theirs = other(images)
    if mine.shape != theirs.shape:
        raise ValueError(f"its outputs are {list(theirs.shape)}, not {list(mine.shape)}")
    difference = ((mine - theirs).abs().max() / mine.abs().max().clamp_min(1)).item()
    if not difference <= TOLERANCE:
        raise ValueError(f"its outputs differ by {difference:.1e} of the largest; at most {TOLERANCE:g} is rounding")
    return difference


def _parser() -> Parser:
    parser = Parser(prog="moco-export", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("checkpoint", help="file in any layout that main_lincls.py --pretrained reads")
    add("--to", choices=tuple(FORMATS), help="format; default with --push-to-hub: huggingface")
    add("--output-dir", metavar="FOLDER", help="new folder; default: one beside the checkpoint")
    add("-a", "--arch", metavar="NAME", help="encoder, if the checkpoint does not name it")
    argument = "argument of an encoder of your own"
    add("--arch-arg", action="append", default=[], metavar="NAME=VALUE", help=argument)
    size = "side of the images in pixels; default: the checkpoint's, else 224"
    add("--image-size", type=Number(int, 1, 65_500), help=size)
    recipe = "augmentations whose mean and std it was trained with; default: the checkpoint's"
    add("--recipe", metavar="NAME", help=recipe)
    add("--no-classifier", action="store_true", help="leave out the classifier of main_lincls.py")
    add("--licence", default="other", help="licence of the weights, in the hub's spelling")
    add("--push-to-hub", metavar="USER/NAME", help="send the folder to the Hugging Face hub")
    add("--private", action="store_true", help="with --push-to-hub: a new repository is private")
    add("--dry-run", action="store_true", help="with --push-to-hub: write the folder, and send nothing")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that do not go together, and completes --to."""
    name = arguments.push_to_hub
    if name:
        check_name(name)
        arguments.to = arguments.to or "huggingface"
    elif arguments.to is None:
        raise InputError("the following arguments are required: --to (see --help)")
    for flag in ("private", "dry_run"):
        if getattr(arguments, flag) and not name:
            raise InputError(f"--{flag.replace('_', '-')} works only with --push-to-hub: leave it out")
    if name and arguments.to not in ("huggingface", "safetensors"):
        raise InputError(f"--push-to-hub sends --to huggingface or safetensors, not {arguments.to}")


def _send(x: Exported, folder: Path, arguments: argparse.Namespace) -> None:
    """Sends the folder to the hub; with --dry-run only lists it."""
    name = arguments.push_to_hub
    if arguments.dry_run:
        files = ", ".join(sorted(file.name for file in folder.iterdir()))
        print(f"not sent: {name} would hold {files}; send it without --dry-run, into another --output-dir")
    else:
        address = push(folder, name, arguments.private, f"{x.arch}, exported by moco")
        print(f"sent: {address}; read it with --pretrained hf-hub:{name}")


def main(argv: list[str] | None = None) -> int:
    def run() -> int:
        arguments = _parser().parse_args(argv)
        _check(arguments)
        x = prepare(
            read_encoder(arguments.checkpoint),
            arch=arguments.arch,
            arch_arg=arguments.arch_arg,
            image_size=arguments.image_size,
            recipe=arguments.recipe,
            classifier=not arguments.no_classifier,
            licence=arguments.licence,
        )
        if arguments.push_to_hub:
            x.about["hub"] = arguments.push_to_hub
        path = Path(arguments.checkpoint)
        default = path.parent / f"{path.name.split('.')[0]}-{arguments.to}"
        result = export(x, arguments.to, arguments.output_dir or default)
        what = f"{len(x.classes)} class scores" if x.classes else f"{x.about['feature_dim']} features"
        print(f"{result.file}: {x.arch}, {what}; differs by {result.difference:.1e}, read back by {result.verified_by}")
        print(f"use it: {result.usage}")
        if arguments.push_to_hub:
            _send(x, result.folder, arguments)
        return EXIT_OK

    return run_command(run)


def script() -> NoReturn:
    """Runs the console script."""
    end_with(main)


if __name__ == "__main__":
    end_with(main)
