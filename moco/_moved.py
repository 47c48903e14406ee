"""Makes old module names work for one release, with a DeprecationWarning."""

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
    "moco.batchnorm": "moco.encoders.batchnorm",
    "moco.checkpoint": "moco.run.checkpoint",
    "moco.checksum": "moco.run.checksum",
    "moco.console": "moco.run.log_views",
    "moco.data.beton_file": "moco.data.beton.file",
    "moco.data.beton_writer": "moco.data.beton.writer",
    "moco.data.compiled": "moco.compiled",
    "moco.data.crew": "moco.data.threads",
    "moco.data.ffcv_writer": "moco.data.beton.ffcv_writer",
    "moco.data.parameters": "moco.data.augment.parameters",
    "moco.data.pixels": "moco.data.augment.batched",
    "moco.data.recipes": "moco.data.augment.recipes",
    "moco.data.samplewise": "moco.data.augment.samplewise",
    "moco.data.side_data": "moco.data.beton.side_data",
    "moco.device": "moco.distributed.session",
    "moco.features": "moco.evaluate.features",
    "moco.flags": "moco.run.flags",
    "moco.geometry": "moco.metrics.geometry",
    "moco.globalbatch": "moco.distributed.global_batch",
    "moco.heads": "moco.losses.table",
    "moco.heads.debiased": "moco.losses.debiased",
    "moco.heads.hardness": "moco.losses.hard",
    "moco.heads.inbatch": "moco.losses.in_batch",
    "moco.heads.penalty": "moco.losses.theory",
    "moco.heads.supcon": "moco.losses.supcon",
    "moco.health": "moco.pretrain.watch",
    "moco.interop.detectron2_layout": "moco.export.detectron2",
    "moco.interop.encoder_file": "moco.encoders.files",
    "moco.interop.formats": "moco.export.formats",
    "moco.interop.model_card": "moco.export.model_card",
    "moco.interop.preprocessing": "moco.encoders.preprocessing",
    "moco.interop.weights_file": "moco.encoders.containers",
    "moco.jsonfile": "moco.run.files",
    "moco.layers": "moco.evaluate.layers",
    "moco.logistic": "moco.probe.logistic",
    "moco.logs": "moco.run.log",
    "moco.logsumexp": "moco.losses.logsumexp",
    "moco.measures": "moco.evaluate.measures",
    "moco.meter": "moco.run.meter",
    "moco.online": "moco.evaluate.online",
    "moco.options": "moco.pretrain.options",
    "moco.page.comparison": "moco.report.comparison",
    "moco.page.correlation": "moco.report.correlation",
    "moco.page.figures": "moco.report.figures",
    "moco.page.html": "moco.report.page",
    "moco.page.neighbours": "moco.report.neighbours",
    "moco.page.plots": "moco.report.plots",
    "moco.page.runs": "moco.report.runs",
    "moco.page.similarities": "moco.report.similarities",
    "moco.page.sweep_figures": "moco.report.sweep_figures",
    "moco.preemption": "moco.run.preemption",
    "moco.probe.file": "moco.probe.saved",
    "moco.provenance": "moco.run.provenance",
    "moco.reference": "moco.pretrain.reference",
    "moco.resume": "moco.pretrain.state",
    "moco.rollcall": "moco.distributed.lost_rank",
    "moco.rowshuffle": "moco.distributed.shuffle",
    "moco.runlock": "moco.run.lock",
    "moco.saver": "moco.run.saver",
    "moco.step": "moco.pretrain.step",
    "moco.wandb_run": "moco.run.log_views",
    "moco.watch": "moco.pretrain.watch",
    "moco.data.subset": "moco.data.source",
    "moco.data.wnids": "moco.data.datasets",
    "moco.probe.cached": "moco.probe.logistic",
    "moco.profiling": "moco.timing",
    "moco.stages": "moco.timing",
}
"""Old name -> new name; both importable until the release after 0.2."""

_FOLDERS = ("moco.interop", "moco.page")  # gone, but their files are in the table


class _OldNames(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old name.

    It gives a module with the names of the new one.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in MOVED and fullname not in _FOLDERS:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=True)  # moco.heads had files of its own

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED.get(module.__name__)
        if new is None:
            return
        warnings.warn(f"{module.__name__} is now {new}; the old name goes away", DeprecationWarning, stacklevel=2)
        names = {name: value for name, value in vars(importlib.import_module(new)).items() if name[:2] != "__"}
        vars(module).update(names)


sys.meta_path.insert(0, _OldNames())  # first: an old folder with only __pycache__ would count as a package
