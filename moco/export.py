"""Reading encoders out of checkpoints, whoever wrote them: which prefix to strip, which tensors belong to the trunk.

A layout is a prefix in front of the encoder's own keys. A trunk is taken whole or not at all: a checkpoint whose names
or shapes do not cover it is refused, because an encoder that is partly untrained gives figures that look merely bad.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moco import checkpoint
from moco.encoders import classifier_name
from moco.errors import InputError

# (prefix of the encoder's keys, who writes it); the first one found is taken, so the special ones come first.
LAYOUTS: tuple[tuple[str, str], ...] = (
    ("module.encoder_q.", "MoCo"),
    ("encoder_q.", "MoCo, without DistributedDataParallel"),
    ("module.base_encoder.", "moco-v3"),
    ("base_encoder.", "moco-v3, without DistributedDataParallel"),
    ("module.", "a network in DistributedDataParallel, as main_lincls.py saves it"),
    ("", "a plain network (torchvision, timm)"),
)
# moco-v3's own names for its ViTs. vit_base is timm's; its vit_small has 12 heads of 32 where libraries have 6 of 64:
# the same shapes, another function, so that loading it into timm's would go unnoticed.
_MOCO_V3_ARCHS = {"vit_base": "timm:vit_base_patch16_224"}
_MOCO_V3_UNKNOWN = ("vit_small", "vit_conv_small", "vit_conv_base")
# Parts that torchvision's networks have only while they are trained with labels.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


@dataclass(frozen=True)
class EncoderFile:
    """An encoder as a checkpoint holds it. `state`: its tensors under the library's names, its classifier included."""

    path: Path
    layout: str
    state: dict[str, Tensor]
    arch: str | None = None
    epoch: int | None = None
    others: int = 0  # tensors of the file that are not the encoder's: key encoder, queue, predictor
    options: dict[str, Any] = field(default_factory=dict)  # of the run that wrote it, if it was ours


@dataclass(frozen=True)
class Loaded:
    """What `load_trunk` did. `skipped`: names of the file that are no part of the trunk (its classifier)."""

    matched: list[str]
    skipped: list[str]
    missing: list[str]

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors of the trunk loaded"
        if self.skipped:
            text += f", {len(self.skipped)} left out ({', '.join(self.skipped[:4])}{', ...' * (len(self.skipped) > 4)})"
        return text + (f", {len(self.missing)} counters not in the file" if self.missing else "")


def read_encoder(path: str | Path) -> EncoderFile:
    """The encoder in a checkpoint of any layout in `LAYOUTS`. InputError if there is none or a number is not finite."""
    content = checkpoint.load(path)
    weights = _weights(content, path)
    prefix, layout = next((p, name) for p, name in LAYOUTS if any(key.startswith(p) for key in weights))
    state = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    arch, epoch, run = content.get("arch"), content.get("epoch"), content.get("moco_run")
    bad = next((key for key, value in state.items() if not torch.isfinite(value).all()), None)
    if bad is not None:
        raise InputError(f"{path}: {bad} holds numbers that are not finite; take an earlier checkpoint")
    options = run.get("options") if isinstance(run, dict) else None
    return EncoderFile(
        path=Path(path),
        layout=layout,
        state=state,
        arch=_arch(arch, prefix, path) if isinstance(arch, str) else None,
        epoch=epoch if isinstance(epoch, int) else None,
        others=len(weights) - len(state),
        options=options if isinstance(options, dict) else {},
    )


def _weights(content: dict[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The dict of tensors in the checkpoint: itself, or under the names that people give it."""
    for candidate in (content.get("state_dict"), content.get("model"), content):
        if isinstance(candidate, dict):
            tensors = {key: value for key, value in candidate.items() if isinstance(value, Tensor)}
            if tensors and all(isinstance(key, str) for key in tensors):
                return tensors
    keys = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
    raise InputError(f"{path} holds no weights ('state_dict', 'model' or plain tensors), only {keys}: check the path")


def _arch(arch: str, prefix: str, path: str | Path) -> str:
    if not prefix.endswith("base_encoder."):
        return arch
    if arch in _MOCO_V3_UNKNOWN:
        raise InputError(
            f"{path} holds moco-v3's {arch}, which torchvision and timm lack: take its vit_base or resnet50"
        )
    return _MOCO_V3_ARCHS.get(arch, arch)


def load_trunk(encoder: nn.Module, file: EncoderFile) -> Loaded:
    """Copies the trunk's tensors from `file`; the classifier stays as it is. InputError if one is missing or odd."""
    head = classifier_name(encoder) + "."
    wanted = {key: value for key, value in encoder.state_dict().items() if not key.startswith(head)}
    offered = {key: value for key, value in file.state.items() if not key.startswith((head, *_AUXILIARY))}
    matched = [key for key in wanted if key in offered]
    missing = [key for key in wanted if key not in offered]
    lost = [key for key in missing if not key.endswith("num_batches_tracked")]  # PyTorch before 0.4.1 did not count
    unknown = [key for key in offered if key not in wanted]
    shapes = [key for key in matched if wanted[key].shape != offered[key].shape]
    if lost or unknown or shapes:
        if shapes:
            key = shapes[0]
            problem = f"{key} is {list(offered[key].shape)} there and {list(wanted[key].shape)} here"
        else:
            problem = f"it has no {lost[0]}" if lost else f"it has {unknown[0]}, which is not in this encoder"
        says = f" (the file says {file.arch})" if file.arch else ""
        raise InputError(
            f"{file.path} does not fit this encoder{says}: {problem}; {len(matched) - len(shapes)} of {len(wanted)} "
            "tensors fit: pass the --arch that it was trained with"
        )
    with torch.no_grad():
        for key in matched:
            wanted[key].copy_(offered[key])
    return Loaded(matched, [key for key in file.state if key not in offered], missing)
