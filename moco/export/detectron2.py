"""Writes and reads detectron2's layout of a ResNet.

The layout is a pickle of NumPy arrays, under other names than torchvision's. Where a file sets `matching_heuristics`,
detectron2's checkpointer matches names by their ends. So the same file fits a bare backbone and every detector built on
one. The pickle may call only `numpy.ndarray` and `bytearray`, so reading it cannot run other code.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def detectron2_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a ResNet's tensors from torchvision's names to detectron2's.

    Stages are res2 to res5; each norm is inside its convolution.
    """
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", key)
        key = re.sub(r"bn(\d)", r"conv\1.norm", key)
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[key if key.startswith("res") else f"stem.{key}"] = value
    return {key: value for key, value in renamed.items() if not key.endswith("num_batches_tracked")}


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a ResNet's tensors from detectron2's names to torchvision's."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^res(\d)", lambda stage: f"layer{int(stage[1]) - 1}", key.removeprefix("stem."))
        key = key.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        renamed[re.sub(r"conv(\d)\.norm", r"bn\1", key)] = value
    return renamed


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        # NumPy's own pickles name internal modules, whose names differ between its versions 1 and 2
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("builtins", "bytearray"):
            return bytearray
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def write(path: Path, state: dict[str, Tensor], author: str) -> None:
    """Writes `state`, which has torchvision's names.

    author: free text.
    """
    arrays = {key: value.numpy() for key, value in detectron2_names(state).items()}
    with path.open("wb") as file:
        _Pickler(file, protocol=4).dump({"model": arrays, "__author__": author, "matching_heuristics": True})


def read(path: Path) -> dict[str, Tensor]:
    """Reads a file of `write`, with torchvision's names, without BatchNorm's counters."""
    content = _Unpickler(io.BytesIO(path.read_bytes())).load()
    return torchvision_names({key: torch.from_numpy(value) for key, value in content["model"].items()})


def config(weights: Path, mean: Sequence[float], std: Sequence[float]) -> str:
    """Returns YAML for a detector's configuration.

    mean, std: of values in [0, 1].
    """
    pixels = [[round(255 * value, 3) for value in values] for values in (mean, std)]
    return (
        f"MODEL:\n  WEIGHTS: {weights.name}\n  PIXEL_MEAN: {pixels[0]}\n  PIXEL_STD: {pixels[1]}\n"
        "  RESNETS:\n    STRIDE_IN_1X1: false\nINPUT:\n  FORMAT: RGB\n"
    )


def load_by_detectron2(path: Path, depth: int) -> Callable[[Tensor], Tensor]:
    """Loads detectron2's own ResNet with the weights of `path`.

    Images [N, 3, H, W] -> pooled features [N, d].
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone

    config = get_cfg()
    config.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", "BN",
         "MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth < 50 else 256,
         "MODEL.RESNETS.OUT_FEATURES", ["res5"]]
    )  # fmt: skip
    backbone = build_backbone(config).eval()
    DetectionCheckpointer(backbone).load(str(path))
    return lambda images: backbone(images)["res5"].mean((2, 3))
