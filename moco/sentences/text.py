"""Reads plain text as tokens: files, encodings, sentences, words."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from moco.errors import InputError

LAYOUTS = ("auto", "lines", "paragraphs", "wrapped")
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # bytes that no text has
_LINE = re.compile(r"\r\n|\n|\r")  # str.splitlines also splits at U+0085, a Windows-1252 ellipsis read as Latin-1
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "_": " "})
_TOKEN = re.compile(r"[^\W\d]+|'[^\W\d]{1,2}(?![^\W\d])|\d+(?:[.,]\d+)*|\.{2,}|-{2,}|[^\w\s]")
_LINE_END = tuple(".!?\"':;)]…—")


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the text files of `paths`, in order.

    For a folder these are its .txt files, sorted. InputError if a path does not exist or holds no text file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"there is no file or folder {path}; check the path")
        inside = text_files(path) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} holds no .txt file; give text files or a folder with some")
        files += inside
    if not files:
        raise InputError("no text was given: pass plain-text files, or folders with .txt files")
    return files


def text_files(folder: Path) -> list[Path]:
    """Returns the .txt files in and below a folder, sorted.

    InputError if the folder or one below it cannot be listed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; check the path") from error

    places = os.walk(folder, onerror=refuse)  # Path.rglob does not report a folder that it cannot list
    return sorted(Path(place, name) for place, _, names in places for name in names if name.endswith(".txt"))


def read_text(path: Path, encoding: str = "auto") -> str:
    """Returns the text of a file.

    encoding 'auto': that of the byte order mark, else UTF-8, else Windows-1252 (Latin-1 with quotation marks and dashes
    instead of control characters). InputError for a file that is empty, binary or in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    if not content.strip():
        raise InputError(f"{path} is empty; leave it out")
    marked = next((name for mark, name in _BOMS.items() if content.startswith(mark)), None)
    may_hold_zeros = marked == "utf-16" or "16" in encoding or "32" in encoding
    if not may_hold_zeros and _CONTROL.search(content, 0, 1 << 16):
        raise InputError(f"{path} is a binary file, not plain text; leave it out")
    name = (marked or "utf-8") if encoding == "auto" else encoding
    try:
        return content.decode(name)
    except LookupError as error:
        raise InputError(f"unknown --encoding {name}; pass for example utf-8, latin-1 or cp1252") from error
    except UnicodeDecodeError as error:
        if encoding == "auto" and marked is None:
            with contextlib.suppress(UnicodeDecodeError):
                return content.decode("cp1252")
        tried = "UTF-8 or Windows-1252" if encoding == "auto" else encoding
        raise InputError(
            f"{path} is not {tried} (byte {content[error.start]:#04x} at {error.start}); pass its --encoding, such as"
            " latin-1"
        ) from error


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text, without their ends."""
    return _LINE.split(text)


def is_wrapped(lines: list[str]) -> bool:
    """Returns True if lines seem wrapped.

    Such lines have at most 100 characters, and more than a quarter of them end inside a sentence.
    """
    full = [line.rstrip() for line in lines if line.strip()]
    open_ended = sum(not line.endswith(_LINE_END) for line in full)
    return max(map(len, full), default=0) <= 100 and open_ended > len(full) / 4


def split_sentences(text: str, layout: str = "auto") -> Iterator[str]:
    """Yields the sentences of a text.

    Sentences without a letter or a digit are left out. layout: 'lines' is one sentence a line, 'paragraphs' one
    paragraph a line, 'wrapped' has paragraphs between blank lines, 'auto' is one of the last two. sentencex splits
    paragraphs. InputError if it is not installed.
    """
    lines = lines_of(text)
    if layout == "auto":
        layout = "wrapped" if is_wrapped(lines) else "paragraphs"
    if layout == "lines":
        parts: Iterable[str] = lines
    else:
        paragraphs = _joined(lines) if layout == "wrapped" else lines
        parts = (part for paragraph in paragraphs for part in _segment(paragraph))
    return (part for part in parts if any(map(str.isalnum, part)))


def _joined(lines: list[str]) -> Iterator[str]:
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.strip())
        elif block:
            yield " ".join(block)
            block = []


def _segment(paragraph: str) -> list[str]:
    if not paragraph.strip():
        return []
    try:
        import sentencex
    except ImportError as error:
        raise InputError(
            "sentencex, which splits paragraphs into sentences, is not installed; pip install sentencex, or give one"
            " sentence a line and pass --layout lines"
        ) from error
    return sentencex.segment("en", paragraph)


def words(sentence: str) -> list[str]:
    """Returns the tokens of a sentence, in their case.

    They are words, endings ('s, 't), numbers and punctuation.
    """
    return _TOKEN.findall(unicodedata.normalize("NFC", sentence).translate(_QUOTES))
