"""The shape of the tree: who may import whom, which file may touch torch.distributed, how long a file may be.

The import order is one-way, so that a reader can go through the files top to bottom and never meet a name that is
explained further down, and so that no two files need each other. The source is read with `ast`; nothing is imported.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Rows from the ground up. A file may import files of the rows before its own and those to its left in its own row.
ROWS: list[list[str]] = [
    ["moco", "moco._torchvision_ops", "moco.errors"],
    [
        "moco.randomness",
        "moco.stages",
        "moco.rollcall",
        "moco.distributed",
        "moco.device",
        "moco.globalbatch",
        "moco.rowshuffle",
        "moco.metrics",
        "moco.geometry",
        "moco.logsumexp",
        "moco.losses",
        "moco.heads.penalty",
        "moco.heads.hardness",
        "moco.heads.debiased",
        "moco.heads.supcon",
        "moco.heads.inbatch",
        "moco.schedules",
        "moco.heads",
        "moco.preemption",
        "moco.provenance",
        "moco.jsonfile",
        "moco.meter",
    ],
    [
        "moco.batchnorm",
        "moco.encoders",
        "moco.builder",
        "moco.profiling",
        "moco.reference",
        "moco.data",
        "moco.checksum",
        "moco.checkpoint",
        "moco.saver",
        "moco.runlock",
        "moco.console",
        "moco.wandb_run",
        "moco.logs",
    ],
    [
        "moco.step",
        "moco.health",
        "moco.logistic",
        "moco.interop",
        "moco.interop.preprocessing",
        "moco.interop.weights_file",
        "moco.interop.encoder_file",
        "moco.interop.detectron2_layout",
        "moco.interop.model_card",
        "moco.interop.formats",
        "moco.export",
        "moco.features",
        "moco.online",
        "moco.measures",
        "moco.layers",
        "moco.evaluate",
        "moco.page",
        "moco.page.correlation",
        "moco.page.neighbours",
        "moco.page.runs",
        "moco.page.comparison",
        "moco.page.figures",
        "moco.page.plots",
        "moco.page.sweep_figures",
    ],
    [
        "moco.flags",
        "moco.options",
        "moco.probe",
        "moco.probe.cached",
        "moco.probe.options",
        "moco.probe.training",
        "moco.probe.model",
        "moco.probe.file",
        "moco.resume",
        "moco.watch",
        "moco.page.html",
        "moco.page.similarities",
        "moco.report",
    ],
    ["main_moco", "main_lincls", "hubconf"],
]
# The same inside moco/data/: what a sample is, where it comes from, in which order, how it becomes a batch.
DATA: list[str] = [
    "moco.data",
    "moco.data.boxes",
    "moco.data.decode",
    "moco.data.source",
    "moco.data.subset",
    "moco.data.folder",
    "moco.data.crew",
    "moco.data.side_data",
    "moco.data.beton_file",
    "moco.data.wnids",
    "moco.data.datasets",
    "moco.data.ffcv_writer",
    "moco.data.beton_writer",
    "moco.data.beton",
    "moco.data.sampler",
    "moco.data.loader",
    "moco.data.pixels",
    "moco.data.recipes",
    "moco.data.parameters",
    "moco.data.samplewise",
    "moco.data.augment",
]
LONGEST_MAIN, LONGEST_MODULE = 300, 270  # a module is a page or five: about 250 lines
FREE = ("tests", "benchmarks", "examples", "launch")  # may import anything above; nothing above may import them


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def core_files() -> list[Path]:
    return sorted(ROOT.glob("moco/**/*.py")) + sorted(ROOT.glob("*.py"))


def place(module: str) -> tuple[int, int, int]:
    """(row, position in the row, position inside moco/data/); LookupError for a file that has no place yet."""
    top = "moco.data" if module.startswith("moco.data") else module
    for row, names in enumerate(ROWS):
        if top in names:
            inside = DATA.index(module) if top == "moco.data" and module in DATA else 0
            if top == "moco.data" and module not in DATA:
                break
            return row, names.index(top), inside
    raise LookupError(f"{module} has no place in the layout: add it to ROWS or DATA in {Path(__file__).name}")


def imports(path: Path, names: set[str]) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions too. `from moco.data import x` counts as moco.data.x if
    that is a file of ours."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in names else base


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in {"moco", "main_moco", "main_lincls", "hubconf", *FREE}


def violations(paths: list[Path]) -> list[str]:
    names = {module_name(p) for p in core_files()}
    wrong = []
    for path in paths:
        here = module_name(path)
        for line, there in imports(path, names):
            if not is_ours(there) or there == here:
                continue
            where = f"{path.relative_to(ROOT)}:{line}"
            if there.partition(".")[0] in FREE:
                wrong.append(f"{where} imports {there}, which is no part of the library")
            elif here != "moco" and place(there) >= place(here) and there not in ("moco", "moco.data"):
                wrong.append(f"{where} imports {there}, which comes later in the layout")
    return wrong


def test_every_file_has_a_place() -> None:
    for path in core_files():
        place(module_name(path))


def test_imports_go_one_way() -> None:
    assert violations(core_files()) == []


def test_the_check_sees_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moco").mkdir()
    source = tmp_path / "moco" / "losses.py"
    (tmp_path / "moco" / "builder.py").write_text("")
    lines = [
        "import moco.builder",
        "from moco import builder",
        "from . import builder",
        "def f():\n  from .builder import X",
    ]
    for line in lines:
        source.write_text(line)
        monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
        assert len(violations([source])) == 1, line
    source.write_text("from examples import quickstart")
    assert len(violations([source])) == 1
    source.write_text("import torch\nfrom moco.randomness import uniform\nfrom moco import __version__")
    assert violations([source]) == []


def test_only_distributed_touches_torch_distributed() -> None:
    names = {module_name(p) for p in core_files()}
    users = {
        module_name(path)
        for path in core_files()
        for _, there in imports(path, names)
        if there.startswith("torch.distributed")
    } | {module_name(path) for path in core_files() if "torch.distributed." in _code(path)}
    assert users <= {"moco.distributed"}


def _code(path: Path) -> str:
    """The attribute accesses of a file, one a line: `torch.distributed.barrier` is found, a docstring is not."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute))


@pytest.mark.parametrize("path", core_files(), ids=module_name)
def test_files_stay_short(path: Path) -> None:
    longest = LONGEST_MAIN if path.parent == ROOT else LONGEST_MODULE
    lines = len(path.read_text().splitlines())
    assert lines <= longest, f"{path.relative_to(ROOT)} has {lines} lines, the most is {longest}: which two concepts?"


def test_no_drawer_for_everything() -> None:
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [p for p in ROOT.glob("[!.]*/**/*.py") if p.stem in vague]


def test_modules_say_what_they_are_for() -> None:
    assert not [str(p) for p in core_files() if ast.get_docstring(ast.parse(p.read_text())) is None]
