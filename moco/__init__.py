"""Momentum Contrast with a swappable loss head: pretraining, evaluation, data.

For loops of your own (examples/own_loop.py):

- `moco.MoCo`: the query and key encoders and the queue (`moco.builder`)
- `moco.losses`: heads `head(q, k, queue) -> LossOutput(loss, logs)`; `moco.heads`: the table of all of them
- `moco.metrics`: alignment, uniformity, tolerance, kNN, as functions of features
- `moco.encoders`: networks by name; `moco.interop.encoder_file`: encoders out of anybody's checkpoints

These are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moco import _torchvision_ops as _torchvision_ops  # first: makes `import torchvision` work in every module below

if TYPE_CHECKING:
    from moco import encoders as encoders
    from moco import heads as heads
    from moco import losses as losses
    from moco import metrics as metrics
    from moco.builder import MoCo as MoCo
    from moco.interop import encoder_file as encoder_file

__version__ = "0.1.0"
_FACE = ("MoCo", "encoder_file", "encoders", "heads", "losses", "metrics")


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module 'moco' has no attribute {name!r}")
    return import_module("moco.builder").MoCo if name == "MoCo" else import_module(f"moco.{name}")
