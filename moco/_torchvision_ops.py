"""Makes torchvision importable beside a PyTorch that its operators do not fit.

The package index has no torchvision for a CPU-only PyTorch on Linux: its file is compiled against the CUDA build.
Beside a CPU-only PyTorch that file cannot be loaded, so `torchvision::nms` and `torchvision::qnms` are never defined.
torchvision registers shape functions for both while it is imported.
It then ends with "operator torchvision::nms does not exist", and so does timm, which imports torchvision.

pip installs such a pair if PyTorch is there first, from a site or from PyTorch's own index.
pip then takes only torchvision from the package index, and the version numbers fit each other.
This project's tests run on such a pair.

This project uses no compiled operator of torchvision: models, transforms and data sets are Python.
So it is enough that the two names exist.
Where the file loads, nothing is defined and torchvision stays as it is.
With the names alone, calling `torchvision.ops.nms` or `torchvision.io.decode_jpeg` still raises.

`moco/__init__.py` imports this before anything else, hence before torchvision and timm.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# A Library undoes its definitions when it is collected: it has to live as long as the process.
_placeholders: torch.library.Library | None = None


def _compiled_operators() -> Path | None:
    """Returns the file of torchvision's operators, or None without one.

    It does not import torchvision.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    return next((path for name in ("_C.so", "_C.pyd") if (path := folder / name).exists()), None)


def _defined(name: str) -> bool:
    try:
        getattr(torch.ops.torchvision, name)
    except AttributeError:
        return False
    return True


def ensure() -> bool:
    """Defines the missing operator names, once.

    Returns True if placeholders are in place, False if torchvision needs none.
    """
    global _placeholders
    if _placeholders is not None:
        return True
    library = _compiled_operators()
    if library is not None:
        try:
            torch.ops.load_library(str(library))
        except OSError:
            pass  # built for another PyTorch
    if _defined("nms"):
        return False  # the two fit; torchvision itself defines what else it registers
    _placeholders = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _placeholders.define(name + _SIGNATURE)
    return True


ensure()
