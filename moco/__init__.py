"""Momentum Contrast with a swappable loss head: pretraining, evaluation, data."""

from moco import _torchvision_ops as _torchvision_ops  # first: makes `import torchvision` work in every module below

__version__ = "0.1.0"
