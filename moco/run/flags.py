"""Builds a command line from the fields of a dataclass.

Each field is one flag. A YAML file may give defaults. An error is one sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from moco.commands import Parser
from moco.errors import InputError, did_you_mean, flag

T = TypeVar("T")

# MoCo started its own processes with these; torchrun starts them now
_LAUNCH_FLAGS = {
    "--multiprocessing-distributed",
    "--world-size",
    "--rank",
    "--dist-url",
    "--dist-backend",
    "--gpu",
    "--gpus",
}


def option(
    default: Any, help: str, *names: str, group: str, topic: str = "", positional: bool = False, **argument: Any
) -> Any:
    """Makes a dataclass field that is also a flag.

    names: further spellings beside --field-name. group and topic: the heading in --help.
    positional: no flag; the word is required. argument: for add_argument.
    """
    make = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**make, metadata={
        "names": names, "help": help, "group": group, "topic": topic, "positional": positional, "argument": argument
    })  # fmt: skip


def build_parser(options: type, description: str) -> argparse.ArgumentParser:
    """Builds the parser of a dataclass of `option` fields.

    A field called `data` is the positional argument.
    """
    parser = Parser(description=description, allow_abbrev=False)
    hints = typing.get_type_hints(options)
    topics_first = sorted(dataclasses.fields(options), key=lambda field: not field.metadata["topic"])
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(map(_heading, topics_first))}
    for f in sorted(dataclasses.fields(options), key=lambda field: field.name == "data"):  # the last positional
        argument = dict(f.metadata["argument"], help=f.metadata["help"])
        group = groups[_heading(f)]
        if f.name == "data":
            group.add_argument("data", **{"nargs": "?", **argument})
            continue
        if f.metadata["positional"]:
            group.add_argument(f.name, **argument)
            continue
        argument["default"] = f.default_factory() if callable(f.default_factory) else f.default
        if hints[f.name] is bool:
            argument.setdefault("action", "store_true")
        else:
            argument.setdefault("type", _scalar_type(hints[f.name]))
        group.add_argument(flag(f.name), *f.metadata["names"], dest=f.name, **argument)
    return parser


def _heading(field: dataclasses.Field[Any]) -> str:
    topic = field.metadata["topic"]
    group = field.metadata["group"]
    return f"{topic} ({group})" if topic else group


def _scalar_type(hint: Any) -> type:
    """Returns int for `int`, `int | None` and `list[int]`."""
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return typing.get_args(hint)[0] if typing.get_origin(hint) is list else hint


def parse(options: type[T], description: str, argv: list[str] | None) -> T:
    """Parses `argv` into an instance of `options`.

    argv: None for the process's own arguments. `--config FILE` gives defaults that other flags override.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(options, description)
    finder = Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    config = finder.parse_known_args(argv)[0].config
    if config is not None:
        parser.set_defaults(**_read_config(config, parser))
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        word = unknown[0].split("=")[0]
        if word in _LAUNCH_FLAGS:
            raise InputError(
                f"{word} was removed, because torchrun starts the processes; use: torchrun --nproc_per_node=8"
                f" {Path(parser.prog).name} ... (several nodes: add --nnodes, --rdzv-backend=c10d and --rdzv-endpoint)"
            )
        known = [name for action in parser._actions for name in action.option_strings]
        raise InputError(f"unknown argument {word}{did_you_mean(word, known)} (see --help)")
    return options(**vars(namespace))


def typed(options: type, argv: list[str] | None) -> set[str]:
    """Returns the options typed on the command line, without --config and defaults."""
    parser = build_parser(options, "")
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_known_args(sys.argv[1:] if argv is None else argv)[0]))


def _read_config(path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Reads the YAML file's settings and checks them like typed ones."""
    try:
        settings = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read --config {path}: {why}; give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise InputError(f"--config {path} must hold lines of the form 'option: value'")
    # a run's options.json names the run's own config, whose settings are in the other lines
    settings.pop("config", None)
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    words: list[str] = []
    named = [str(key).replace("-", "_") for key in settings]
    for name, value in zip(named, settings.values(), strict=True):
        if name not in actions:
            raise InputError(f"--config {path}: there is no option '{name}'{did_you_mean(name, actions)}")
        words += _typed(actions[name], value, path)
    try:
        parsed = vars(parser.parse_args(words))
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from error
    return {name: parsed[name] for name in named}


def _typed(action: argparse.Action, value: Any, path: str) -> list[str]:
    """Returns one setting as command-line words."""
    if value is None:
        return []
    if isinstance(value, bool):
        if isinstance(action, argparse.BooleanOptionalAction):
            return [action.option_strings[0 if value else 1]]
        if action.nargs != 0:
            raise InputError(f"--config {path}: '{action.dest}' takes a value, not {str(value).lower()}")
        return [action.option_strings[0]] if value else []
    if action.nargs == 0:
        raise InputError(f"--config {path}: '{action.dest}' takes true or false, not {value}")
    if isinstance(action, argparse._AppendAction) and isinstance(value, list):
        return [f"{action.option_strings[0]}={one}" for one in value]
    if isinstance(value, (list, dict)) and action.nargs != "*":
        raise InputError(f"--config {path}: '{action.dest}' takes one value, not {value}")
    values = [str(v) for v in (value if isinstance(value, list) else [value])]
    if not action.option_strings:
        return values
    if len(values) == 1 and action.nargs is None:
        return [f"{action.option_strings[0]}={values[0]}"]  # one word, so that a value may begin with a dash
    return [action.option_strings[0], *values]
