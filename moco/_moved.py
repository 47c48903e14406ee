"""Old module names, which go on to work for one release with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED: dict[str, str] = {
    "moco.heads": "moco.losses.table",
    "moco.heads.debiased": "moco.losses.debiased",
    "moco.heads.hardness": "moco.losses.hard",
    "moco.heads.inbatch": "moco.losses.in_batch",
    "moco.heads.penalty": "moco.losses.theory",
    "moco.heads.supcon": "moco.losses.supcon",
    "moco.logsumexp": "moco.losses.logsumexp",
}
"""Old name -> new name; both importable until the release after 0.2."""


class _OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old name and returns the one under the new name, the same object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is now {new}; the old name goes away", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has overwritten it


sys.meta_path.insert(0, _OldNames())  # first: an old folder with nothing but __pycache__ would count as a package
