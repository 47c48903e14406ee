"""The public names of the package, and the old module names that still work."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import moco
from moco._moved import MOVED


@pytest.mark.parametrize("name", moco.FACE)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(moco, name)
    module = importlib.import_module(moco.FACE[name])
    assert value is module or value is getattr(module, name)
    assert name in dir(moco)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'MoCO'"):
        moco.MoCO  # noqa: B018


@pytest.mark.parametrize("old", MOVED)
def test_old_module_names_have_the_new_names(old: str) -> None:
    new = importlib.import_module(MOVED[old])
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=rf"{old} is now {MOVED[old]}"):
        module = importlib.import_module(old)
    names = {name for name in vars(new) if not name.startswith("__")}
    assert names and all(getattr(module, name) is getattr(new, name) for name in names)


def test_names_are_imported_at_first_use() -> None:
    code = "import sys, moco; assert 'torchvision' not in sys.modules; moco.losses; moco.MoCo"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
