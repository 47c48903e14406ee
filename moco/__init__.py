"""Momentum Contrast with a swappable loss head: pretraining, evaluation and data, as used by `main_moco.py` and `main_lincls.py`."""

from moco import _torchvision_ops as _torchvision_ops  # first: makes `import torchvision` work in every module below

__version__ = "0.1.0"
