"""Every option of the two mains: its flag, default, meaning, and whether it changes the results.

A field of the dataclass is the option; the parser is made from the fields. Names, defaults and meanings are facebookresearch/moco's
and, for the loss, those of its align/uniform fork; what neither has is marked "(new)".
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from moco import distributed
from moco.batchnorm import BN_MODES
from moco.data.datasets import DATASET_DEFAULTS, DATASETS
from moco.data.recipes import RECIPES
from moco.errors import InputError
from moco.losses import PRESET_WEIGHTS, Across, OneProcess, WeightedHead
from moco.saver import Every

RESULTS, EVALUATION, RUNNING = "changes results", "evaluation", "does not change results"


def option(default: Any, help: str, *names: str, group: str = RUNNING, **argument: Any) -> Any:
    """A field with its flag: `names` are further spellings beside --field-name; `argument` goes to add_argument."""
    make = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(**make, metadata={"names": names, "help": help, "group": group, "argument": argument})


@dataclass(frozen=True)
class CommonOptions:
    """What both mains take."""

    data: str | None = option(None, "folder with train/ and val/, a .beton file, or where a --dataset lies or goes", group=RESULTS)
    dataset: str = option("folder", "which data (new)", group=RESULTS, choices=DATASETS)
    image_size: int | None = option(None, "side of the square crops in pixels; default: the data set's usual one (new)", group=RESULTS)
    seed: int | None = option(None, "seed of everything random; default: drawn at the start, and saved", group=RESULTS)
    deterministic: bool = option(False, "only deterministic kernels: bit-identical runs on a GPU too, at some cost (new)", group=RESULTS)
    skip_bad_images: bool = option(False, "leave out images that cannot be read, and count them (new)", group=RESULTS)
    workers: int = option(32, "decoding threads of a node, capped to the CPUs it may use", "-j")
    loader: str = option("auto", "insist on a way to read the data (new)", choices=("auto", "ffcv", "folder"))
    device: str = option("auto", "where to train: cuda if there is one (new)", choices=("auto", "cuda", "cpu"))
    print_freq: int = option(10, "steps between two log lines", "-p")
    output_dir: str = option("", "where checkpoints, logs and options go; default: a name under runs/ (new)")
    config: str | None = option(None, "YAML file with defaults: option name: value. Flags override it (new)")
    dry_run: bool = option(False, "print the resolved options and stop (new)")


@dataclass(frozen=True)
class PretrainOptions(CommonOptions):
    """Options of main_moco.py."""

    arch: str = option("resnet50", "encoder: a torchvision name, timm:NAME, resnet18_small, smallalexnet, smallcnn", "-a", group=RESULTS)
    epochs: int = option(200, "epochs to train", group=RESULTS)
    start_epoch: int = option(0, "epoch to start counting at", group=RESULTS)
    batch_size: int = option(256, "images per step, over all ranks", "-b", group=RESULTS)
    lr: float = option(0.03, "learning rate at the start, for the batch size given", "--learning-rate", group=RESULTS)
    schedule: list[int] = option([120, 160], "epochs at which the learning rate drops tenfold", group=RESULTS, nargs="*")
    cos: bool = option(False, "cosine schedule instead", group=RESULTS)
    warmup_epochs: int = option(0, "epochs of linear warm-up (new)", group=RESULTS)
    momentum: float = option(0.9, "momentum of SGD", group=RESULTS)
    weight_decay: float = option(1e-4, "weight decay", "--wd", group=RESULTS)
    grad_clip: float | None = option(None, "largest gradient norm (new)", group=RESULTS)
    accum_steps: int = option(1, "parts a batch is split into, one after the other, to save memory (new)", group=RESULTS)
    amp: str = option("off", "automatic mixed precision of the encoders (new)", group=RESULTS, choices=("off", "bf16", "fp16"))
    max_bad_steps: int = option(
        0, "steps whose gradient is not finite to leave out before giving up (new)", group=RESULTS
    )
    moco_dim: int = option(128, "feature dimension", group=RESULTS)
    moco_k: int = option(65536, "queue length: number of negative keys", group=RESULTS)
    moco_m: float = option(0.999, "momentum of the key encoder", group=RESULTS)
    moco_t: float = option(0.07, "temperature of the contrastive term", "--moco-contr-tau", group=RESULTS)
    mlp: bool = option(False, "MLP head (MoCo v2)", group=RESULTS)
    aug_plus: bool = option(False, "MoCo v2's augmentations", group=RESULTS)
    recipe: str | None = option(None, "augmentations by name; default: the data set's, or v1/v2 (new)", group=RESULTS, choices=tuple(RECIPES))
    loss: str | None = option(None, "preset of the three weights: 1/0/0 or 0/3/1 (new; default infonce)", group=RESULTS, choices=tuple(PRESET_WEIGHTS))
    moco_contr_w: float | None = option(None, "weight of the contrastive term", group=RESULTS)
    moco_align_w: float | None = option(None, "weight of the alignment term", group=RESULTS)
    moco_align_alpha: float = option(2.0, "exponent α of alignment", group=RESULTS)
    moco_unif_w: float | None = option(None, "weight of the uniformity term", group=RESULTS)
    moco_unif_t: float = option(3.0, "t of uniformity", group=RESULTS)
    moco_unif_no_intra_batch: bool = option(False, "uniformity over queue pairs only, without pairs of the batch", group=RESULTS)
    unif_global: bool = option(False, "one uniformity over all ranks' queries, not the mean of each rank's (new)", group=RESULTS)
    bn: str | None = option(None, "BatchNorm isolation; default: shuffle on several ranks, split on one (new)", group=RESULTS, choices=BN_MODES)
    bn_group_size: int = option(32, "samples per virtual group of --bn split (new)", group=RESULTS)

    eval_freq: int | None = option(None, "epochs between two online evaluations, 0 for none; default 10 where there is a val split (new)", group=EVALUATION)
    knn_k: int = option(200, "neighbours of the online kNN (new)", group=EVALUATION)
    knn_t: float = option(0.1, "temperature of the online kNN (new)", group=EVALUATION)

    resume: str | None = option(None, "checkpoint to go on from; 'auto': the newest good one in --output-dir, if any")
    save_freq: int = option(1, "epochs between two checkpoints; the last epoch is always saved (new)")
    save_every: str | None = option(None, "save inside epochs too: after so many steps (500) or minutes (30m) (new)")
    keep_last: int = option(0, "checkpoints to keep; 0: all but those inside epochs, of which the last two (new)")
    keep_every: int = option(0, "with --keep-last, keep also those of every so many epochs (new)")
    rank_timeout: float = option(1800.0, "seconds after which a rank that does not answer ends the run (new)")
    channels_last: bool = option(True, "NHWC memory format (new)", action=argparse.BooleanOptionalAction)
    tensorboard: bool = option(True, "write TensorBoard files (new)", action=argparse.BooleanOptionalAction)
    wandb: str | None = option(None, "log to this Weights & Biases project as well (new)", metavar="PROJECT")


@dataclass(frozen=True)
class LinclsOptions(CommonOptions):
    """Options of main_lincls.py."""

    arch: str | None = option(None, "encoder; default: the checkpoint's, else resnet50", "-a", group=RESULTS)
    pretrained: str | None = option(None, "checkpoint of the encoder; without it the encoder is untrained", group=RESULTS)
    epochs: int = option(100, "epochs to train", group=RESULTS)
    start_epoch: int = option(0, "epoch to start counting at", group=RESULTS)
    batch_size: int = option(256, "images per step, over all ranks", "-b", group=RESULTS)
    lr: float = option(30.0, "learning rate per 256 images: another --batch-size scales it by batch/256", "--learning-rate", group=RESULTS)
    schedule: list[int] = option([60, 80], "epochs at which the learning rate drops tenfold", group=RESULTS, nargs="*")
    momentum: float = option(0.9, "momentum of SGD", group=RESULTS)
    weight_decay: float = option(0.0, "weight decay", "--wd", group=RESULTS)
    recipe: str | None = option(None, "augmentations by name; default: lincls, or the data set's (new)", group=RESULTS, choices=tuple(RECIPES))
    evaluate: bool = option(False, "only measure the classifier of --resume on the validation data", "-e", group=EVALUATION)
    resume: str | None = option(None, "checkpoint of the linear classifier to go on from")


Options = TypeVar("Options", bound=CommonOptions)

# MoCo spawned its own processes; torchrun does that now
_LAUNCH_FLAGS = {"--multiprocessing-distributed", "--world-size", "--rank", "--dist-url", "--dist-backend", "--gpu", "--gpus"}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, instead of the usage of sixty flags."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def build_parser(options: type[CommonOptions], description: str) -> argparse.ArgumentParser:
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    hints = typing.get_type_hints(options)
    titles = (RESULTS, EVALUATION, RUNNING)
    groups = {title: parser.add_argument_group(title) for title in titles}
    for f in dataclasses.fields(options):
        argument = dict(f.metadata["argument"], help=f.metadata["help"])
        group = groups[f.metadata["group"]]
        if f.name == "data":
            group.add_argument("data", nargs="?", **argument)
            continue
        argument["default"] = f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[misc]
        if hints[f.name] is bool:
            argument.setdefault("action", "store_true")
        else:
            argument["type"] = _scalar_type(hints[f.name])
        group.add_argument("--" + f.name.replace("_", "-"), *f.metadata["names"], dest=f.name, **argument)
    return parser


def _scalar_type(hint: Any) -> type:
    """int of `int`, `int | None` and `list[int]`."""
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return typing.get_args(hint)[0] if typing.get_origin(hint) is list else hint


def _config_arguments(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """The YAML file as command-line words, so that both go through the same checks."""
    try:
        settings = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --config {path}: {error}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings or {}, dict):
        raise InputError(f"--config {path} must hold lines of the form 'option: value'")
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    words: list[str] = []
    for key, value in (settings or {}).items():
        action = actions.get(str(key).replace("-", "_"))
        if action is None:
            near = difflib.get_close_matches(str(key).replace("-", "_"), actions, 3)
            raise InputError(f"--config {path}: there is no option '{key}'" + (f"; near: {', '.join(near)}" if near else ""))
        values = value if isinstance(value, list) else [value]
        if not action.option_strings:
            words += [str(v) for v in values]
        elif isinstance(value, bool):
            if isinstance(action, argparse.BooleanOptionalAction):
                words.append(action.option_strings[0 if value else 1])
            elif action.nargs != 0:
                raise InputError(f"--config {path}: '{key}' takes a value, not {str(value).lower()}")
            elif value:
                words.append(action.option_strings[0])
        elif value is not None:
            words += [action.option_strings[0], *(str(v) for v in values)]
    return words


def _parse(options: type[Options], description: str, argv: list[str]) -> Options:
    parser = build_parser(options, description)
    given, _ = _only_config(argv)
    if given:
        argv = _config_arguments(given, parser) + argv
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        if flag in _LAUNCH_FLAGS:
            raise InputError(
                f"{flag} is gone: torchrun starts the processes. Use: torchrun --nproc_per_node=8 {Path(parser.prog).name} ..."
                " (several nodes: add --nnodes, --rdzv-backend=c10d and --rdzv-endpoint)"
            )
        known = [name for action in parser._actions for name in action.option_strings]
        near = difflib.get_close_matches(flag, known, 3)
        raise InputError(f"unknown argument {flag}" + (f"; near: {', '.join(near)}" if near else "; see --help"))
    return options(**vars(namespace))


def _only_config(argv: list[str]) -> tuple[str | None, list[str]]:
    finder = _Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    found, rest = finder.parse_known_args(argv)
    return found.config, rest


def parse_pretrain(argv: list[str] | None = None) -> PretrainOptions:
    """The options of main_moco.py, checked and resolved: no None is left but where None means "none"."""
    import sys

    o = _parse(PretrainOptions, "Momentum-contrast pretraining.", sys.argv[1:] if argv is None else argv)
    size, recipe = DATASET_DEFAULTS[o.dataset]
    given = (o.moco_contr_w, o.moco_align_w, o.moco_unif_w)
    # weights without --loss are a command of the fork, whose defaults are 0/3/1
    loss = o.loss or ("align-uniform" if any(w is not None for w in given) else "infonce")
    weights = [preset if w is None else w for w, preset in zip(given, PRESET_WEIGHTS[loss], strict=True)]
    resolved = dataclasses.replace(
        o,
        image_size=o.image_size or size,
        recipe=o.recipe or ("v2" if o.aug_plus else recipe),
        loss=loss,
        moco_contr_w=weights[0],
        moco_align_w=weights[1],
        moco_unif_w=weights[2],
        bn=o.bn or ("shuffle" if distributed.world_size() > 1 else "split"),
        output_dir=o.output_dir or os.path.join("runs", f"{o.dataset}-{o.arch.replace(':', '-')}-{loss}"),
    )
    _check(resolved)
    _at_least(resolved, 1, "moco_dim", "moco_k", "accum_steps", "save_freq", "knn_k", "bn_group_size")
    _at_least(resolved, 0, "warmup_epochs", "moco_m", "eval_freq", "max_bad_steps", "keep_last", "keep_every")
    _positive(resolved, "moco_t", "moco_align_alpha", "moco_unif_t", "grad_clip", "knn_t", "rank_timeout")
    if resolved.moco_m > 1:
        raise InputError(f"--moco-m must lie between 0 and 1, not {resolved.moco_m:g}")
    if resolved.batch_size < distributed.world_size() * resolved.accum_steps:
        raise InputError(
            f"--batch-size {resolved.batch_size} leaves some of {distributed.world_size()} ranks × {resolved.accum_steps}"
            " accumulation steps without an image; raise it"
        )
    loss_head(resolved)  # its own checks, before anything is built
    Every(resolved.save_every)
    return resolved


def parse_lincls(argv: list[str] | None = None) -> LinclsOptions:
    """The options of main_lincls.py, checked. `arch`, `image_size` and `output_dir` may still be for the checkpoint to say."""
    import sys

    o = _parse(LinclsOptions, "Linear classification on frozen features.", sys.argv[1:] if argv is None else argv)
    _check(o)
    return o


def loss_head(o: PretrainOptions, across: Across | None = None) -> WeightedHead:
    """The head that the options describe. `across`: the other ranks, for --unif-global."""
    assert o.moco_contr_w is not None and o.moco_align_w is not None and o.moco_unif_w is not None  # resolved
    return WeightedHead(
        contr_w=o.moco_contr_w,
        temperature=o.moco_t,
        align_w=o.moco_align_w,
        align_alpha=o.moco_align_alpha,
        unif_w=o.moco_unif_w,
        unif_t=o.moco_unif_t,
        intra_batch=not o.moco_unif_no_intra_batch,
        across=across if across and o.unif_global else OneProcess(),
    )


def _check(o: PretrainOptions | LinclsOptions) -> None:
    if o.dataset in ("folder", "imagenet100") and o.data is None:
        raise InputError("say where the images are: a folder with train/ and val/, or --dataset digits for the embedded data")
    _at_least(o, 1, "epochs", "batch_size", "print_freq", "workers", "image_size")
    _at_least(o, 0, "start_epoch", "momentum", "weight_decay", "seed")
    _positive(o, "lr")


def _at_least(o: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(o, name)
        if value is not None and not (math.isfinite(value) and value >= least):
            raise InputError(f"--{name.replace('_', '-')} must be at least {least:g}, not {value:g}")


def _positive(o: Any, *names: str) -> None:
    for name in names:
        value = getattr(o, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"--{name.replace('_', '-')} must be greater than 0, not {value:g}")


def result_options(options: type[CommonOptions]) -> list[str]:
    """Names of the options that change results."""
    return [f.name for f in dataclasses.fields(options) if f.metadata["group"] == RESULTS]


def as_dict(o: CommonOptions) -> dict[str, Any]:
    return dataclasses.asdict(o)


def as_json(o: CommonOptions) -> str:
    return json.dumps(as_dict(o), indent=2)
