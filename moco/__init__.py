"""Momentum Contrast with a swappable loss: pretraining, evaluation, data.

For a training loop of your own (examples/own_loop.py):

- `moco.MoCo`: the query and key encoders and the queue (`moco.builder`)
- `moco.losses`: `loss(q, k, queue) -> LossOutput(loss, logs)`; `moco.losses.table` has all of them by name
- `moco.metrics`: alignment, uniformity, tolerance, kNN, as functions of features
- `moco.encoders`: networks by name; `moco.encoder_file`: encoders from checkpoints of other projects

Each is imported at its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moco import (
    _moved as _moved,  # old module names go on to work
    _torchvision_ops as _torchvision_ops,  # first: makes `import torchvision` work in every module below
)

if TYPE_CHECKING:
    from moco.builder import MoCo as MoCo

__version__ = "0.2.0"

FACE = {
    "MoCo": "moco.builder",
    "encoder_file": "moco.encoders.files",
    "encoders": "moco.encoders",
    "losses": "moco.losses",
    "metrics": "moco.metrics",
}
"""Public name -> the module that it is, or that holds it."""


def __getattr__(name: str) -> Any:
    if name not in FACE:
        raise AttributeError(f"module 'moco' has no attribute {name!r}")
    module = import_module(FACE[name])
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return sorted([*globals(), *FACE])
