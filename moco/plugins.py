"""Losses, data sets and networks from outside, named as `module:Name`.

`--loss own_loss:OwnLoss --loss-arg scale=0.5` calls `OwnLoss(scale=0.5)` of own_loss.py. The module is searched in the
installed packages, then in the working directory. Only what the command line names is imported, never what a
checkpoint names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from moco.errors import InputError, did_you_mean


def is_outside(name: str | None) -> bool:
    """Returns True if `name` has the form module:Name.

    timm:NAME does not count as this form.
    """
    return name is not None and ":" in name and not name.startswith("timm:")


def known_or_outside(flag: str, known: Sequence[str]) -> Callable[[str], str]:
    """Returns the type of an option that takes `known` or module:Name.

    `known` are the allowed names. The type raises InputError for any other name.
    """

    def check(name: str) -> str:
        if name not in known and not is_outside(name):
            raise InputError(
                f"unknown {flag} {name!r}{did_you_mean(name, known)}; take one of {', '.join(known)}, or module:Name"
            )
        return name

    return check


def find(flag: str, name: str, words: Sequence[str], *given: Any) -> Callable[[], Any]:
    """Imports module:Name; returns it with its arguments bound, not called yet.

    Arguments are `given` and those in `words`, each argument=value as typed after `flag`-arg.
    InputError if the module or the name does not exist, or if the arguments do not fit the signature.
    """
    module_name, _, attribute = name.partition(":")
    module = _import(flag, name, module_name)
    target = getattr(module, attribute, None)
    if target is None:
        public = [known for known in vars(module) if not known.startswith("_")]
        raise InputError(f"{flag} {name}: {_file(module)} defines no {attribute}{did_you_mean(attribute, public)}")
    if not callable(target):
        raise InputError(f"{flag} {name} is a {type(target).__name__}; it must be a class or a function")
    arguments = dict(_argument(flag, word) for word in words)
    try:
        signature = inspect.signature(target)
    except ValueError:  # some classes written in C have none
        return partial(target, *given, **arguments)
    try:
        signature.bind(*given, **arguments)
    except TypeError as error:
        raise InputError(f"{flag} {name}: {error}; arguments are given as {flag}-arg name=value") from error
    return partial(target, *given, **arguments)


def check_unused(flag: str, name: str | None, words: Sequence[str]) -> None:
    """Raises InputError if a built-in name is given arguments."""
    if words and not is_outside(name):
        raise InputError(
            f"{flag}-arg {words[0]} works only with {flag} module:Name, not with the built-in {name}; leave it out"
        )


def _import(flag: str, name: str, module_name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file here must not hide a library that others import
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.startswith(error.name):
            raise InputError(
                f"{flag} {name}: there is no module {error.name} in {os.getcwd()} or among the installed packages"
            ) from error
        raise InputError(f"{flag} {name}: {_where(error)}") from error
    except Exception as error:
        raise InputError(f"{flag} {name}: {_where(error)}") from error


def _where(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename} line {error.lineno}: {error.msg}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"its import failed at {last.filename} line {last.lineno}: {type(error).__name__}: {error}"


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__


def _argument(flag: str, word: str) -> tuple[str, Any]:
    """Returns (argument, value) of the text `argument=value`.

    The value is a Python literal, true, false or text.
    """
    argument, equals, text = word.partition("=")
    if not equals or not argument.isidentifier():
        raise InputError(f"{flag}-arg {word} must have the form name=value")
    if text in ("true", "false"):
        return argument, text == "true"
    try:
        return argument, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return argument, text
