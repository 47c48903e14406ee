"""Writes encoders in other projects' formats, and reads them back.

`write` puts its files into an empty folder. `reload` opens them with the library that the format is for. It returns a
function from normalised images [N, C, S, S] to the outputs of the exported network. It raises an error for files that
it cannot open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision import models

from moco.encoders import build_encoder, classifier_name, torchvision_arguments, trunk
from moco.errors import InputError
from moco.export import detectron2 as detectron2_layout
from moco.export.exported import Exported as Exported
from moco.export.model_card import model_card

Outputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """Describes one format.

    library: the distribution that verifies it. usage: how it is loaded, for `str.format`.
    """

    file: str
    library: str
    usage: str
    write: Callable[[Exported, Path], None]
    reload: Callable[[Exported, Path], Outputs]
    needs: tuple[str, ...] = ()  # modules that a plain installation lacks

    def verifier(self) -> str:
        """Returns the library that reads the result back, such as 'timm 1.0.31'."""
        try:
            return f"{self.library} {version(self.library)}"
        except PackageNotFoundError:
            return "its published layout"

    def missing(self) -> list[str]:
        return [module for module in self.needs if find_spec(module) is None]


def _strictly(network: nn.Module, state: dict[str, Tensor], allowed: str = "") -> None:
    """Loads all of `state`; ValueError for other names.

    Tensors whose names begin with `allowed` may be missing.
    """
    missing, unexpected = network.load_state_dict(state, strict=False)
    if wrong := [key for key in missing if not allowed or not key.startswith(allowed)] + unexpected:
        raise ValueError(f"{len(wrong)} names differ, the first is {wrong[0]}")


def _ours(x: Exported, state: dict[str, Tensor]) -> Outputs:
    """Builds a new network of this project with `state`.

    It is for formats that hold only tensors, without the network.
    """
    encoder = build_encoder(
        x.arch, x.outputs or 1, image_size=x.preprocessing.size, arguments=x.arch_arg, channels=x.channels
    )
    _strictly(encoder, state, "" if x.classes else classifier_name(encoder) + ".")
    return (encoder if x.classes else trunk(encoder)).eval()


# torchvision, timm and Hugging Face


def _write_torchvision(x: Exported, path: Path) -> None:
    if x.arch not in models.list_models(module=models):
        raise InputError(f"torchvision has no {x.arch}: take --to safetensors, onnx or moco")
    _only_rgb(x, "torchvision's networks take")
    torch.save(x.state, path)


def _reload_torchvision(x: Exported, path: Path) -> Outputs:
    arguments = torchvision_arguments(x.arch, x.preprocessing.size)
    network = models.get_model(x.arch, weights=None, num_classes=x.outputs or 1000, **arguments)
    head = classifier_name(x.encoder)
    _strictly(network, torch.load(path, weights_only=True), "" if x.classes else head + ".")
    if not x.classes:
        network.set_submodule(head, nn.Identity())
    return network.eval()


def timm_name(arch: str) -> str:
    """Returns timm's name of the network. InputError if there is none.

    The verification checks that it is the same network.
    """
    name = arch.removeprefix("timm:")
    if not timm.is_model(name):
        raise InputError(f"timm has no {name}: take --to safetensors, onnx or moco")
    return name


def _timm_network(x: Exported, **arguments: Any) -> nn.Module:
    name = timm_name(x.arch)
    cfg = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    if cfg is not None and cfg.fixed_input_size:
        arguments["img_size"] = x.preprocessing.size
    if x.channels != 3:
        arguments["in_chans"] = x.channels
    return timm.create_model(name, pretrained=False, num_classes=x.outputs, **arguments).eval()


def _write_timm(x: Exported, path: Path) -> None:
    timm_name(x.arch)
    torch.save(x.state, path)


def _write_huggingface(x: Exported, path: Path) -> None:
    from timm.models import save_for_hf

    network = _timm_network(x)
    network.load_state_dict(x.state)
    how = x.preprocessing
    pictures = dict(
        input_size=(x.channels, how.size, how.size),
        mean=how.mean,
        std=how.std,
        crop_pct=how.crop,
        interpolation="bilinear",
    )
    labels = {"label_names": x.classes} if x.classes else {}
    save_for_hf(network, str(path.parent), labels, safe_serialization=True, data_config=pictures)
    config = json.loads((path.parent / "config.json").read_text())
    for foreign in ("tag", "license", "origin_url", "paper_ids"):  # timm's own weights of this network have them
        config["pretrained_cfg"].pop(foreign, None)
    (path.parent / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (path.parent / "README.md").write_text(model_card(x.about))


def _reload_huggingface(x: Exported, path: Path) -> Outputs:
    return timm.create_model(f"local-dir:{path.parent}", pretrained=True).eval()


# detectron2


def _write_detectron2(x: Exported, path: Path) -> None:
    stem = x.state.get("conv1.weight")
    if stem is None or stem.shape[-1] != 7 or "layer4.0.conv1.weight" not in x.state:
        raise InputError(f"detectron2's ResNets have a 7 x 7 stem and four stages, unlike {x.arch}: take another --to")
    _without_classifier(x, "detectron2's backbones")
    _only_rgb(x, "detectron2 reads")
    detectron2_layout.write(path, x.state, json.dumps(x.about))
    path.with_suffix(".yaml").write_text(detectron2_layout.config(path, x.preprocessing.mean, x.preprocessing.std))


def _reload_detectron2(x: Exported, path: Path) -> Outputs:
    """Reads with detectron2 if it is installed, else by inverting `write`."""
    depth = re.search(r"resnet(\d+)$", x.arch)
    if find_spec("detectron2") and depth:
        return detectron2_layout.load_by_detectron2(path, int(depth[1]))
    counters = {key: value for key, value in x.state.items() if key.endswith("num_batches_tracked")}
    return _ours(x, detectron2_layout.read(path) | counters)


# safetensors, ONNX and MoCo's own


def _write_safetensors(x: Exported, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(x.state, path, metadata={"format": "pt", "moco": json.dumps(x.about)})


def _reload_safetensors(x: Exported, path: Path) -> Outputs:
    from safetensors.torch import load_file

    return _ours(x, load_file(path))


def _write_onnx(x: Exported, path: Path) -> None:
    side = x.preprocessing.size
    program = torch.onnx.export(
        x.network, (torch.zeros(2, x.channels, side, side),), dynamo=True, verbose=False, input_names=["images"],
        output_names=["logits" if x.classes else "features"], dynamic_shapes=({0: torch.export.Dim("n")},),
    )  # fmt: skip
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.model.metadata_props["moco"] = json.dumps(x.about)
    program.save(path)


def _reload_onnx(x: Exported, path: Path) -> Outputs:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_moco(x: Exported, path: Path) -> None:
    _without_classifier(x, "checkpoints of MoCo's pretraining")
    _only_rgb(x, "MoCo's own programs take")
    weights = {f"module.encoder_q.{key}": value for key, value in x.state.items()}
    torch.save({"epoch": x.about["epoch"], "arch": x.arch, "state_dict": weights}, path)


def _reload_moco(x: Exported, path: Path) -> Outputs:
    """Reads the weights as MoCo's main_lincls.py does.

    It takes the names with module.encoder_q. but without .fc, and removes that prefix.
    """
    prefix = "module.encoder_q."
    head = prefix + classifier_name(x.encoder)
    weights = torch.load(path, weights_only=True)["state_dict"]
    return _ours(
        x, {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix) and not k.startswith(head)}
    )


def _only_rgb(x: Exported, who: str) -> None:
    if x.channels != 3:
        raise InputError(
            f"{who} images of 3 channels, and this encoder has {x.channels}: take --to timm, safetensors or onnx"
        )


def _without_classifier(x: Exported, what: str) -> None:
    if x.classes:
        raise InputError(f"{what} have no linear classifier: pass --no-classifier")


FORMATS: dict[str, Format] = {
    "torchvision": Format(
        "encoder.pth", "torchvision", "torchvision.models.{arch}().load_state_dict(torch.load({file!r}), strict=False)",
        _write_torchvision, _reload_torchvision,
    ),
    "timm": Format(
        "encoder.pth", "timm", "timm.create_model({timm!r}, num_classes={outputs}{in_chans}, checkpoint_path={file!r})",
        _write_timm, lambda x, path: _timm_network(x, checkpoint_path=path),
    ),
    "huggingface": Format(
        "model.safetensors", "timm", "timm.create_model('local-dir:{folder}', pretrained=True)",
        _write_huggingface, _reload_huggingface,
    ),
    "detectron2": Format(
        "encoder.pkl", "detectron2", "a detector's MODEL.WEIGHTS {file}, with the settings of encoder.yaml",
        _write_detectron2, _reload_detectron2,
    ),
    "safetensors": Format(
        "encoder.safetensors", "safetensors", "safetensors.torch.load_file({file!r})",
        _write_safetensors, _reload_safetensors,
    ),
    "onnx": Format(
        "encoder.onnx", "onnxruntime", "onnxruntime.InferenceSession({file!r}).run(None, {{'images': images}})",
        _write_onnx, _reload_onnx, needs=("onnx", "onnxscript", "onnxruntime"),
    ),
    "moco": Format(
        "encoder.pth.tar", "facebookresearch/moco", "main_lincls.py --pretrained {file}", _write_moco, _reload_moco
    ),
}  # fmt: skip
