"""Stores a main's resolved options in a YAML file for the job.

The job reads the same file after every requeue.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from launch.job import Step
from moco.errors import InputError
from moco.plugins import is_outside
from moco.pretrain.options import PretrainOptions, parse_pretrain
from moco.probe.depth.options import DepthOptions, parse_depth
from moco.probe.options import LinclsOptions, parse_lincls
from moco.run.files import write_text
from moco.run.options import CommonOptions, as_dict
from moco.sentences.options import SentenceOptions, parse_sentences

NOT_KEPT = ("config", "dry_run", "resume")
PATHS = ("data", "output_dir", "pretrained", "vocabulary", "classify")


def pretraining(argv: list[str], ranks: int) -> PretrainOptions:
    """Parses pretraining's options as `ranks` ranks will parse them.

    InputError for bad options, before a job waits in a queue.
    """
    return parse_pretrain(argv, world_size=ranks)


def sentences(argv: list[str], ranks: int) -> SentenceOptions:
    """Parses the options of python -m moco.sentences.train in the same way."""
    return parse_sentences(argv, world_size=ranks)


def probe(argv: list[str], pretrain: PretrainOptions, ranks: int = 1) -> LinclsOptions | DepthOptions:
    """Makes the options of the probe for what `pretrain` will train.

    They name the same data, the last checkpoint, and a folder inside the run's own.
    The probe is linear. For NYU-Depth-V2, which has no classes, it is the depth probe.
    InputError if `ranks` ranks cannot train it.
    """
    out = Path(pretrain.output_dir)
    of_depth = pretrain.dataset == "nyu-depth"
    if of_depth and ranks > 1:
        raise InputError(f"the depth probe takes one process, not {ranks}: start a job of its own for it")
    given = {
        "--dataset": pretrain.dataset,
        "--loader": pretrain.loader,
        "--workers": pretrain.workers,
        "--device": pretrain.device,
        "--pretrained": out / f"checkpoint_{pretrain.epochs - 1:04d}.pth.tar",
        "--output-dir": out / ("depth" if of_depth else "lincls"),
        "--seed": pretrain.seed,
    }
    words = [pretrain.data] if pretrain.data else []
    for flag, value in given.items():
        if value is not None:
            words += [flag, str(value)]
    for argument in pretrain.dataset_arg:
        words += ["--dataset-arg", argument]
    if is_outside(pretrain.arch):
        words += ["--arch", pretrain.arch]
    return parse_depth([*words, *argv]) if of_depth else parse_lincls([*words, *argv])


def main_of_probe(options: LinclsOptions | DepthOptions) -> str:
    """Returns the module whose `main` trains the probe."""
    return "moco.probe.depth.__main__" if isinstance(options, DepthOptions) else "main_lincls"


def write(main: str, options: CommonOptions | SentenceOptions, path: Path) -> Step:
    """Writes `options` to `path`, with absolute paths.

    So the job's working folder does not matter.
    """
    write_text(path, as_text(options))
    begin_from = getattr(options, "resume", None)
    begin_from = None if begin_from in (None, "auto") else os.path.abspath(begin_from)
    return Step(main, str(path), os.path.abspath(options.output_dir), begin_from)


def as_text(options: CommonOptions | SentenceOptions) -> str:
    kept: dict[str, Any] = {k: v for k, v in as_dict(options).items() if v is not None and k not in NOT_KEPT}
    absolute = {name: _absolute(kept[name]) for name in PATHS if kept.get(name)}
    return yaml.safe_dump({**kept, **absolute, "resume": "auto"}, sort_keys=False)


def _absolute(path: str | list[str]) -> str | list[str]:
    return [os.path.abspath(one) for one in path] if isinstance(path, list) else os.path.abspath(path)
