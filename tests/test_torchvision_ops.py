"""torchvision and timm can be imported beside any build of PyTorch, once moco is."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest
import torch

from moco import _torchvision_ops as ops


def test_torchvision_and_timm_can_be_imported() -> None:
    import timm
    import torchvision

    assert torchvision.models.resnet18 is not None
    assert timm.create_model is not None


def test_operators_have_names_and_placeholders_refuse_to_run() -> None:
    assert ops._defined("nms")
    if ops._placeholders is not None:
        assert ops._defined("qnms")
        with pytest.raises(NotImplementedError):
            torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_nothing_is_defined_beside_a_torch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older files that fit have no qnms, and torchvision then asks for none."""
    monkeypatch.setattr(ops, "_placeholders", None)
    monkeypatch.setattr(ops, "_defined", lambda name: name == "nms")
    assert not ops.ensure()
    assert ops._placeholders is None


def test_second_call_defines_nothing() -> None:
    before = ops._placeholders
    assert ops.ensure() is (before is not None)
    assert ops._placeholders is before


def test_without_torchvision_nothing_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert ops._compiled_operators() is None


def test_operators_are_found_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert ops._compiled_operators() is None
    (tmp_path / "_C.so").touch()
    assert ops._compiled_operators() == tmp_path / "_C.so"
