"""Reads encoders from checkpoints of this and other projects.

A layout is the prefix of the encoder's keys in a checkpoint. A few projects also number or rename the parts.
A trunk is loaded completely or not at all. A checkpoint is refused if its names or shapes do not cover the trunk,
because a partly untrained encoder gives plausible but worse figures. It is also refused if the tensors fit but the
network computes another function.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco.encoders import hub
from moco.encoders.channels import input_channels, weights_for
from moco.encoders.containers import open_weights
from moco.encoders.networks import build_encoder, classifier_name, trunk
from moco.encoders.preprocessing import Preprocessing
from moco.errors import InputError
from moco.plugins import is_outside

# (prefix of the encoder's keys, who writes it); the first match is taken, so special prefixes come first.
LAYOUTS: tuple[tuple[str, str], ...] = (
    ("module.encoder_q.", "MoCo"),
    ("encoder_q.", "MoCo, without DistributedDataParallel"),
    ("module.base_encoder.", "moco-v3"),
    ("base_encoder.", "moco-v3, without DistributedDataParallel"),
    ("backbone.", "lightly, solo-learn or DINO"),
    ("module.backbone.", "DINO, in DistributedDataParallel"),
    ("module.", "a network in DistributedDataParallel, as main_lincls.py saves it"),
    ("", "a plain network (torchvision, timm)"),
)
# moco-v3's vit_base is timm's network too, under timm's name; its other ViTs are ours (moco/encoders/vit.py).
_MOCO_V3_ARCHS = {"vit_base": "timm:vit_base_patch16_224"}
# These buffers hold no state: the align/uniform fork's label for its contrastive term.
STATELESS = ("scalar_label",)
# torchvision's networks have these parts only while they are trained with labels.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# A checkpoint keeps its weights under one of these, or is only weights; DINO evaluates its teacher.
_WEIGHTS = ("state_dict", "model", "teacher", "student", "model_state_dict")
# lightly makes a ResNet a Sequential; these are its parts with tensors, in order.
_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
_AVERAGES = re.compile(r"momentum|target|teacher|ema|key|_k\b")  # in the names of moving averages of encoders


@dataclass(frozen=True)
class EncoderFile:
    """Holds an encoder from a checkpoint."""

    path: Path
    layout: str
    state: dict[str, Tensor]  # under the library's names, with its classifier
    arch: str | None = None
    epoch: int | None = None
    others: list[str] = field(default_factory=list)  # tensors of other things: key encoder, queue, predictor
    options: dict[str, Any] = field(default_factory=dict)  # of the run that wrote it, if it was ours
    rest: dict[str, Any] = field(default_factory=dict)  # the checkpoint's other entries: optimizer, best_acc1, ...


@dataclass(frozen=True)
class Loaded:
    """Lists the names of tensors that `load_trunk` did or did not load."""

    matched: list[str]
    skipped: list[str]  # in the file but not in the trunk, such as its classifier
    missing: list[str]
    others: int = 0  # tensors of the file's other parts
    adapted: str = ""  # a note about a weight adapted to another number of channels

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors of the trunk loaded"
        if self.adapted:
            text += f", {self.adapted}"
        if self.skipped:
            text += f", {len(self.skipped)} left out ({', '.join(self.skipped[:4])}{', ...' * (len(self.skipped) > 4)})"
        if self.others:
            text += f", {self.others} of other parts not read"
        return text + (f", {len(self.missing)} counters not in the file" if self.missing else "")


def network_of(file: EncoderFile, arch: str | None, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the network in `file`, and a module:factory's arguments.

    arch, arguments: those of the command line; they have priority.
    InputError if neither names the network. Also if only the file names a module:factory, because a checkpoint must not
    decide which code is imported.
    """
    if arch is None and file.arch is None:
        raise InputError(f"{file.path} does not say which network it holds; pass --arch")
    if arch is None and is_outside(file.arch):
        raise InputError(
            f"{file.path} holds the network {file.arch}, which is not part of this program; pass --arch {file.arch} to"
            " import it"
        )
    name = arch or file.arch or ""
    if is_outside(name) and not arguments:
        arguments = file.options.get("arch_arg", [])
    return name, list(arguments)


def read_encoder(path: str | Path) -> EncoderFile:
    """Reads the encoder in a checkpoint of any layout in `LAYOUTS`.

    path: a torch or safetensors file, or a folder that moco.export or `timm.models.save_for_hf` wrote.
    The folder may be local or hf-hub:USER/NAME.
    InputError if there is no encoder or a number is not finite.
    """
    content = open_weights(hub.fetch(str(path)) if hub.is_hub(path) else Path(path))
    # torch.compile puts _orig_mod into the names
    weights = {key.replace("_orig_mod.", ""): value for key, value in _weights(content, path).items()}
    prefix, layout = next((p, name) for p, name in LAYOUTS if any(key.startswith(p) for key in weights))
    state = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    arch = content.get("arch")
    epoch = content.get("epoch")
    run = next((content[name] for name in ("moco_run", "moco_lincls", "moco_depth") if name in content), None)
    if arch is None and isinstance(content.get("args"), argparse.Namespace):
        arch = getattr(content["args"], "arch", None)
        arch = arch if str(arch).startswith("resnet") else None  # DINO's names for ViTs are its own
    bad = next((key for key, value in state.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise InputError(f"{path}: {bad} holds numbers that are not finite; take an earlier checkpoint")
    options = run.get("options") if isinstance(run, dict) else None
    return EncoderFile(
        path=Path(path),
        layout=layout,
        state=_library_names(state, Path(path)),
        arch=_arch(arch, prefix) if isinstance(arch, str) else None,
        epoch=epoch if isinstance(epoch, int) else None,
        others=[key for key in weights if not key.startswith(prefix)],
        options=options if isinstance(options, dict) else {},
        rest={key: value for key, value in content.items() if key not in (*_WEIGHTS, *weights)},
    )


def _weights(content: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Finds the dict of tensors: the checkpoint itself or a usual entry."""
    for candidate in (*(content.get(name) for name in _WEIGHTS), content):
        if isinstance(candidate, dict):
            tensors = {key: value for key, value in candidate.items() if isinstance(value, Tensor)}
            if tensors and all(isinstance(key, str) for key in tensors):
                return tensors
    keys = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
    raise InputError(f"{path} holds no weights ('state_dict', 'model' or plain tensors), only {keys}: check the path")


def _arch(arch: str, prefix: str) -> str:
    return _MOCO_V3_ARCHS.get(arch, arch) if prefix.endswith("base_encoder.") else arch


def _library_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Gives a ResNet torchvision's names if it uses others.

    lightly numbers its parts; some projects call the downsampling "shortcut".
    """
    numbers = sorted({key.split(".")[0] for key in state if key.split(".")[0].isdigit()}, key=int)
    parts = dict(zip(numbers, _PARTS, strict=True)) if len(numbers) == len(_PARTS) else {}
    if parts and any(".shortcut." in key for key in state):
        raise _another_function(path, "lightly's ResNet for small images, with no ReLU after the first convolution")
    renamed = {}
    for key, value in state.items():
        first, _, rest = key.partition(".")
        key = f"{parts.get(first, first)}.{rest}" if rest else key
        renamed[re.sub(r"^(layer\d\.\d+)\.shortcut\.", r"\1.downsample.", key)] = value
    return renamed


def _another_function(path: Path, what: str) -> InputError:
    """Returns the error for a network with equal tensors but another computation."""
    return InputError(f"{path} holds {what}: no network here computes the same; use that project's ResNet for ImageNet")


def _trunk_of(encoder: nn.Module) -> dict[str, Tensor]:
    head = classifier_name(encoder) + "."
    return {key: value for key, value in encoder.state_dict().items() if not key.startswith(head)}


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")  # PyTorch before 0.4.1 did not count


def _find(wanted: dict[str, Tensor], file: EncoderFile) -> EncoderFile:
    """Returns `file`, or the part of it that holds the trunk.

    The part has a prefix that `LAYOUTS` does not list. InputError if several parts hold the trunk.
    Before that, parts named like moving averages are left out, unless all have such names.
    """
    needed = {key for key in wanted if not _is_counter(key)}
    if needed <= file.state.keys():
        return file
    found = {}
    for prefix in {key[: dot.end()] for key in file.state for dot in re.finditer(r"\.", key)}:
        inside = {k.removeprefix(prefix): v for k, v in file.state.items() if k.startswith(prefix)}
        state = _library_names(inside, file.path)
        if needed <= state.keys():
            found[prefix] = state
    leading = {prefix: state for prefix, state in found.items() if not _AVERAGES.search(prefix)} or found
    if len(leading) > 1:
        names = " and ".join(sorted(leading))
        raise InputError(f"{file.path} holds several encoders, {names}: save one of them to its own file")
    for prefix, state in leading.items():
        others = file.others + [key for key in file.state if not key.startswith(prefix)]
        return replace(file, state=state, others=others, layout=f"under {prefix}")
    return file


def _is_solos_small(file: EncoderFile) -> bool:
    stem = file.state.get("conv1.weight")
    return stem is not None and stem.shape[-1] == 3 and {"classifier.weight", "projector.0.weight"} <= {*file.others}


def load_trunk(encoder: nn.Module, file: EncoderFile) -> Loaded:
    """Copies the trunk's tensors from `file`; leaves the classifier unchanged.

    InputError if a tensor is missing, unknown or of another shape.
    """
    head = classifier_name(encoder) + "."
    wanted = _trunk_of(encoder)
    file = _find(wanted, file)
    if _is_solos_small(file):
        raise _another_function(file.path, "solo-learn's ResNet for small images, whose stem pads by 2 pixels, not 1")
    offered = {key: value for key, value in file.state.items() if not key.startswith((head, *_AUXILIARY))}
    offered, adapted = weights_for(wanted, offered, input_channels(encoder))
    matched = [key for key in wanted if key in offered]
    missing = [key for key in wanted if key not in offered]
    lost = [key for key in missing if not _is_counter(key)]
    unknown = [key for key in offered if key not in wanted]
    shapes = [key for key in matched if wanted[key].shape != offered[key].shape]
    if lost or unknown or shapes:
        if shapes:
            key = shapes[0]
            problem = f"{key} is {list(offered[key].shape)} in the file and {list(wanted[key].shape)} in the encoder"
        else:
            problem = f"it has no {lost[0]}" if lost else f"it has {unknown[0]}, which is not in this encoder"
        says = f" (the file says {file.arch})" if file.arch else ""
        raise InputError(
            f"{file.path} does not fit this encoder{says}: {problem}; {len(matched) - len(shapes)} of {len(wanted)} "
            f"tensors fit: pass the --arch{' and --channels' * bool(shapes)} that it was trained with"
        )
    with torch.no_grad():
        for key in matched:
            wanted[key].copy_(offered[key])
    return Loaded(matched, [key for key in file.state if key not in offered], missing, len(file.others), adapted)


def read_trunk(path: str | Path, arch: str | None = None, image_size: int | None = None) -> nn.Module:
    """Reads the trunk of a checkpoint, in evaluation mode.

    It computes [N, C, S, S] -> [N, d]. arch, image_size: needed if the file does not name them.
    The trunk's attribute `preprocessing` turns a Pillow image into fp32 [C, S, S], as in the evaluation of the run.
    InputError as for `read_encoder` and `load_trunk`.
    """
    file = read_encoder(path)
    if arch is None and file.arch is None:
        raise InputError(f"{path} does not say which network it holds: pass its arch")
    how = Preprocessing.of_run(file.options, image_size)
    encoder = build_encoder(arch or file.arch or "", 1, image_size=how.size, channels=how.pixels.channels)
    load_trunk(encoder, file)
    network = trunk(encoder).eval()
    network.preprocessing = how  # type: ignore[assignment]
    return network
