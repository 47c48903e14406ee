"""The import graph of the library, read with `ast`, and the counts that describe its shape.

    python -m tests.layout        # or: make house; also renews the drawing in docs/architecture.md

Nothing is imported. A room is a file or a folder directly in moco/. An arrow is a pair of rooms of which the first
imports the second. The floors are the rooms of the longest chain of arrows.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCREEN = 40  # lines of a function that fit on a screen


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def library_files(root: Path = ROOT) -> list[Path]:
    """Every file of moco/, the two mains and hubconf.py."""
    return sorted(root.glob("moco/**/*.py")) + sorted(root.glob("*.py"))


def imports(path: Path, names: set[str], root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """Yields (line, module) of every import of a file, also those inside functions.

    names: the modules of the library. `from moco.data import x` counts as moco.data.x if that is one of them.
    """
    package = module_name(path, root) if path.name == "__init__.py" else module_name(path, root).rpartition(".")[0]
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


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """The modules of moco/ and those that each imports."""
    files = sorted(root.glob("moco/**/*.py"))
    names = {module_name(path, root) for path in files}
    return {
        module_name(path, root): {there for _, there in imports(path, names, root) if there in names}
        - {module_name(path, root)}
        for path in files
    }


def room(module: str) -> str:
    """The room of a module: 'data' for moco.data.augment.recipes. The face, moco itself, is no room: ''."""
    return module.split(".")[1] if "." in module else ""


def room_graph(modules: dict[str, set[str]]) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {room(module): set() for module in modules if room(module)}
    for module, imported in modules.items():
        if room(module):
            rooms[room(module)] |= {room(other) for other in imported} - {room(module), ""}
    return rooms


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Some cycle of a graph as the list of its members, [] if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    for start in sorted(edges):
        if found := visit(start, []):
            return found
    return []


def floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each node of a graph without cycles: 0 imports nothing, n imports something of floor n - 1."""
    height: dict[str, int] = {}

    def visit(node: str, path: frozenset[str]) -> int:
        if node not in height:
            below = [visit(other, path | {node}) for other in edges.get(node, ()) if other not in path]
            height[node] = 1 + max(below, default=-1)
        return height[node]

    for node in sorted(edges):
        visit(node, frozenset())
    return height


def functions(root: Path = ROOT) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in product_files(root):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield path, node


def product_files(root: Path = ROOT) -> list[Path]:
    return library_files(root) + sorted(root.glob("launch/**/*.py"))


def counts(root: Path = ROOT) -> dict[str, int]:
    """What `make house` prints."""
    rooms = room_graph(graph(root))
    signatures = [
        " ".join(ast.unparse(part) for part in [node.args, node.returns] if part) for _, node in functions(root)
    ]
    texts = [path.read_text() for path in product_files(root)]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    long_functions = [node for _, node in functions(root) if (node.end_lineno or 0) - node.lineno + 1 > SCREEN]
    library = [path.read_text() for path in sorted(root.glob("moco/**/*.py"))]
    return {
        "rooms at the top of moco/": len(rooms),
        "import arrows between rooms": sum(len(others) for others in rooms.values()),
        "floors": 1 + max(floors(rooms).values()),
        f"functions over {SCREEN} lines": len(long_functions),
        "Any in signatures": sum(len(re.findall(r"\bAny\b", signature)) for signature in signatures),
        "type: ignore": sum(text.count("# type: ignore") for text in texts),
        "asserts in the product": sum(isinstance(node, ast.Assert) for node in nodes),
        "lines of moco/": sum(len(text.splitlines()) for text in library),
        "lines of moco/, mains and launch/": sum(len(text.splitlines()) for text in texts),
    }


def needed_arrows(rooms: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no chain of others implies: what is left of the graph in a drawing."""

    def below(name: str) -> set[str]:
        return rooms[name].union(*(below(other) for other in rooms[name]))

    return sorted(
        (name, other)
        for name, others in rooms.items()
        for other in others
        if not any(other in below(between) for between in others)
    )


def drawing(root: Path = ROOT) -> str:
    """The rooms as a Mermaid flow chart, lowest floor at the bottom. Private files and `errors` are left out."""
    rooms = room_graph(graph(root))
    hidden = {"errors", *(name for name in rooms if name.startswith("_"))}
    shown = {name: others - hidden for name, others in rooms.items() if name not in hidden}
    height = floors(shown)
    lines = ["```mermaid", "flowchart TD"]
    for floor in sorted(set(height.values()), reverse=True):
        names = sorted(name for name in shown if height[name] == floor)
        lines.append("    " + "; ".join(f"{name}[{name}]" for name in names))
    lines += [f"    {name} --> {other}" for name, other in needed_arrows(shown)]
    return "\n".join([*lines, "```"])


def with_drawing(text: str, new: str) -> str:
    """A page with the drawing between its two marks replaced."""
    before, rest = text.split("<!-- rooms -->\n")
    _, after = rest.split("<!-- end of rooms -->")
    return f"{before}<!-- rooms -->\n{new}\n<!-- end of rooms -->{after}"


PAGE = ROOT / "docs" / "architecture.md"

if __name__ == "__main__":
    for what, number in counts().items():
        print(f"{number:6d}  {what}")
    PAGE.write_text(with_drawing(PAGE.read_text(), drawing()))
