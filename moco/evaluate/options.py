"""Defines the options of moco.evaluate."""

from __future__ import annotations

from dataclasses import dataclass

from moco.encoders import check_arch
from moco.errors import InputError, flag
from moco.run import flags
from moco.run.options import DataOptions, at_least, check_data, check_seed, positive, result, running


@dataclass(frozen=True)
class EvaluateOptions(DataOptions):
    """Holds the options of moco.evaluate."""

    checkpoint: str = result("", "file in any layout that main_lincls.py --pretrained reads", positional=True)
    features_from: list[str] = result(
        [], "trunk, output or names of layers; default: all that the file holds", nargs="+"
    )
    arch: str | None = result(
        None, "encoder, if the checkpoint does not name it, or your own module:factory", "-a", metavar="NAME"
    )
    arch_arg: list[str] = result(
        [], "argument of an encoder of your own; default: the checkpoint's", action="append", metavar="NAME=VALUE"
    )
    recipe: str | None = result(None, "augmentations of the views, and normalisation; default: the checkpoint's")
    seed: int = result(0, "seed of the augmented views")
    knn_k: int = result(200, "neighbours of the kNN")
    knn_t: float = result(0.1, "temperature of the kNN")
    align_alpha: float = result(2.0, "exponent of alignment")
    unif_t: float = result(2.0, "t of uniformity")
    bins: int = result(100, "bins of the histograms")
    json: str | None = running(None, "write everything measured to this file, histograms included", metavar="FILE")


def parse_evaluate(argv: list[str] | None = None) -> EvaluateOptions:
    """Parses and checks the options of moco.evaluate.

    `image_size` and `recipe` may be None; then the checkpoint decides.
    """
    o = flags.parse(EvaluateOptions, "Every measure of an encoder's features, on the validation images.", argv)
    check_data(o)
    check_arch(o.arch, o.arch_arg)
    at_least(o, 1, "knn_k", "bins")
    check_seed(o.seed)
    positive(o, "knn_t", "align_alpha", "unif_t")
    for name, most in (("bins", 1_000_000), ("align_alpha", 100.0)):
        if getattr(o, name) > most:
            raise InputError(f"{flag(name)} must be at most {most:g}, not {getattr(o, name):g}")
    return o
