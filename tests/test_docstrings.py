"""Docstrings begin with one short sentence, as CONTRIBUTING.md asks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("moco", "launch", "benchmarks", "examples")
MOST_WORDS = 12
QUESTIONS = ("What", "Which", "How", "Where", "Whether")


def first_lines(code: str) -> Iterator[tuple[str, str]]:
    """The name and the docstring's first line of everything in a module that has one."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield getattr(node, "name", "the module"), text.partition("\n")[0].strip()


def faults(code: str) -> list[str]:
    found = []
    for name, line in first_lines(code):
        words = line.split()
        if len(words) > MOST_WORDS:
            found.append(f"{name} has {len(words)} words: {line}")
        elif not line.endswith((".", ":", "?")):
            found.append(f"{name} goes on in the next line: {line}")
        elif words[0] in QUESTIONS:
            found.append(f"{name} begins with {words[0]}: {line}")
    return found


def test_first_lines_are_short_sentences() -> None:
    files = [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))]
    assert len(files) > 200
    of_files = {str(file.relative_to(ROOT)): faults(file.read_text(encoding="utf-8")) for file in files}
    assert {name: lines for name, lines in of_files.items() if lines} == {}


def test_each_fault_is_seen() -> None:
    code = '''
def long():
    """One two three four five six seven eight nine ten eleven twelve thirteen."""
def torn():
    """Returns the sum
    of all."""
class Question:
    """What it is."""
def fine():
    """Returns the sum.

    The other lines may have as many words as they need, as this one, which has twenty words or more in it."""
'''
    assert [line.split()[0] for line in faults(code)] == ["long", "torn", "Question"]
