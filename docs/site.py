"""Hooks of mkdocs: the README as first page, the example of a report, the picture of the rooms, and links out of docs/.

docs/ is read on the repository's pages as well, so its links to source files are relative. The site has no such files:
they become links into the repository where pyproject.toml names one, and names of files elsewhere.
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # `build` brings it there

ROOT = Path(__file__).resolve().parent.parent
GENERATED = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
EXAMPLE = ROOT / "build" / "example-report" / "index.html"  # written by `make docs`
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
ROOMS = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)


def on_config(config: Any) -> Any:
    """Takes the repository's address from pyproject.toml: the one place that names it."""
    config.repo_url = config.repo_url or repository()
    return config


def repository() -> str | None:
    """[project.urls] Repository of pyproject.toml, or None where the project has no public address yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    url: str | None = project.get("urls", {}).get("Repository")
    return url


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, source in GENERATED.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, name, content=LINK.sub(_from_root, text)))
    files.append(File.generated(config, "example-report-page.html", content=EXAMPLE.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    if page.file.src_uri.startswith("api/"):
        return markdown
    markdown = ROOMS.sub(lambda found: picture(found[1]), markdown)

    def outside(found: re.Match[str]) -> str:
        _, words, target = found.groups()
        if not target.startswith("../"):
            return found[0]
        path = target.removeprefix("../")
        own = {source: name for name, source in GENERATED.items()}
        if path in own:
            return f"[{words}]({own[path]})"
        if config.repo_url:
            return f"[{words}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        name = path.partition("#")[0]
        return f"`{name}`" if words.strip("`") in name else f"{words} (`{name}`)"

    return LINK.sub(outside, markdown)


def _from_root(found: re.Match[str]) -> str:
    """A link of a file beside docs/, as a page in docs/ has it."""
    picture, words, target = found.groups()
    if "://" in target or target.startswith("#"):
        return found[0]
    target = target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
    return f"{picture}[{words}]({target})"


def picture(graph: str) -> str:
    """The rooms of docs/architecture.md as SVG: a line of the graph is a floor, `a --> b` an arrow."""
    floors = [re.findall(r"(\w+)\[\w+\]", line) for line in graph.splitlines() if "[" in line]
    arrows = re.findall(r"(\w+) --> (\w+)", graph)
    width, height, step = 960, 34, 84
    at = {}
    boxes = []
    for row, floor in enumerate(floors):
        for column, room in enumerate(floor):
            x, y = width * (column + 0.5) / len(floor), 10 + row * step
            at[room] = (x, y)
            boxes.append(
                f'<rect x="{x - 62:.0f}" y="{y}" width="124" height="{height}" rx="6"/>'
                f'<text x="{x:.0f}" y="{y + 22}">{escape(room)}</text>'
            )
    lines = []
    for above, below in arrows:
        (x1, y1), (x2, y2) = at[above], at[below]
        if y1 == y2:  # side by side, joined by an arc under both
            lines.append(f'<path d="M{x1:.0f} {y1 + height} Q{(x1 + x2) / 2:.0f} {y1 + 66} {x2:.0f} {y2 + height}"/>')
        else:
            lines.append(f'<path d="M{x1:.0f} {y1 + height} L{x2:.0f} {y2}"/>')
    head = '<marker id="head" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="7" markerHeight="7" orient="auto">'
    head += '<path d="M0 0L6 3L0 6z"/></marker>'
    size = f'viewBox="0 0 {width} {20 + height + step * (len(floors) - 1) + 30}"'
    label = "rooms of moco and their imports"
    return (
        f'<div class="rooms"><svg {size} role="img" aria-label="{label}"><style>'
        ".rooms{overflow-x:auto}.rooms svg{min-width:560px;width:100%}"
        ".rooms rect{fill:var(--md-code-bg-color);stroke:var(--md-default-fg-color--light)}"
        ".rooms text{text-anchor:middle;font:600 15px sans-serif;fill:var(--md-default-fg-color)}"
        ".rooms path{fill:none;stroke:var(--md-default-fg-color--light);marker-end:url(#head)}"
        ".rooms marker path{fill:var(--md-default-fg-color--light);marker-end:none}"
        f"</style><defs>{head}</defs>{''.join(lines)}{''.join(boxes)}</svg></div>\n"
    )
