"""The shape of the tree: which room may import which, who may use torch.distributed, how long a file may be.

The source is read with `ast` (tests/layout.py); nothing is imported.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.layout import (
    PAGE,
    ROOT,
    cycle,
    drawing,
    graph,
    imports,
    library_files,
    module_name,
    needed_arrows,
    room,
    room_graph,
    with_drawing,
)

# Low to high, groups between bars. A room may import the rooms of lower groups, and those of its own group as long as
# no two rooms of it need each other. The order inside a group, and of the files inside a room, is computed: no cycles.
LAW = (
    "_torchvision_ops compiled errors commands plugins randomness schedules timing world | distributed metrics losses"
    " | data | run | encoders | builder evaluate pretrain sentences | probe export report"
)
FLOOR = {name: number for number, group in enumerate(LAW.split("|")) for name in group.split()}
LONGEST_MAIN, LONGEST_MODULE = 300, 270  # lines
FREE = ("tests", "benchmarks", "examples", "launch", "main_moco", "main_lincls", "hubconf")  # above the library


def violations(modules: dict[str, set[str]]) -> list[str]:
    """Imports that go up: 'moco.losses.hard imports moco.data.loader'."""
    return [
        f"{module} imports {other}"
        for module, imported in sorted(modules.items())
        for other in sorted(imported)
        if room(module) in FLOOR and room(other) in FLOOR and FLOOR[room(other)] > FLOOR[room(module)]
    ]


def test_imports_go_one_way() -> None:
    assert violations(graph()) == []
    assert cycle(room_graph(graph())) == [], "rooms that need each other"
    # a room's face imports its files: that is no arrow
    inside = {
        module: {other for other in imported if not module.startswith(f"{other}.")}
        for module, imported in graph().items()
    }
    assert cycle(inside) == [], "files that need each other"


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("losses/weighted.py", "import moco.builder"),
        ("losses/weighted.py", "from moco import builder"),
        ("losses/weighted.py", "from .. import builder"),
        ("losses/weighted.py", "def f():\n  from ..builder import MoCo"),
        ("builder.py", "from moco.probe.model import Model"),
    ],
)
def test_the_check_sees_an_import_that_goes_up(path: str, line: str, tmp_path: Path) -> None:
    for name in ("losses/weighted.py", "builder.py", "probe/model.py", "errors.py"):
        (tmp_path / "moco" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "moco" / name).write_text("import torch\nfrom moco.errors import InputError\n")
    assert violations(graph(tmp_path)) == []
    (tmp_path / "moco" / path).write_text(line)
    assert len(violations(graph(tmp_path))) == 1


def test_the_check_sees_a_cycle() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_the_library_imports_nothing_above_it() -> None:
    modules = [path for path in library_files() if path.parent != ROOT]
    for path in modules:
        for line, there in imports(path, set()):
            assert there.partition(".")[0] not in FREE, f"{path}:{line} imports {there}"


def test_only_one_room_touches_torch_distributed() -> None:
    users = {
        module_name(path)
        for path in library_files()
        if any(there.startswith("torch.distributed") for _, there in imports(path, set()))
        or "torch.distributed." in _attributes(path)
    }
    assert {name for name in users if not name.startswith("moco.distributed")} == set()
    assert users  # the check sees those that do


def _attributes(path: Path) -> str:
    """The attribute accesses of a file, one a line: `torch.distributed.barrier` is one, a docstring is not."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute))


@pytest.mark.parametrize("path", library_files(), ids=module_name)
def test_files_stay_short(path: Path) -> None:
    longest = LONGEST_MAIN if path.parent == ROOT else LONGEST_MODULE
    lines = len(path.read_text().splitlines())
    assert lines <= longest, f"{path.relative_to(ROOT)} has {lines} lines, the most is {longest}: which two concepts?"


def test_no_drawer_for_everything() -> None:
    vague = {"utils", "util", "helpers", "misc", "common"}
    assert not [p for p in ROOT.glob("[!.]*/**/*.py") if p.stem in vague]


def test_modules_have_docstrings() -> None:
    assert not [str(p) for p in library_files() if ast.get_docstring(ast.parse(p.read_text())) is None]


def test_the_drawing_of_the_rooms_is_current() -> None:
    text = PAGE.read_text()
    assert with_drawing(text, drawing()) == text, "run `make house` and commit docs/architecture.md"
    for name in FLOOR:
        assert name.startswith("_") or f"`{name}" in text, f"docs/architecture.md says nothing about {name}"


def test_the_drawing_leaves_out_arrows_that_others_imply() -> None:
    assert needed_arrows({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]
