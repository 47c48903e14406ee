"""Holds the vocabulary of a run: word to row of the embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from moco.errors import InputError
from moco.run.files import write_text

UNKNOWN = "<unk>"
FILE = "vocabulary.txt"  # in the run's folder: a word a line, in the order of the embedding's rows


class Vocabulary:
    """Holds words in the order of their ids.

    Id 0 is the unknown word.
    """

    def __init__(self, words: Iterable[str]):
        self.words = [UNKNOWN, *words]
        self._ids = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def ids(self, words: Iterable[str]) -> list[int]:
        return [self._ids.get(word, 0) for word in words]

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def write(self, path: Path) -> None:
        write_text(path, "\n".join(self.words) + "\n")


def most_frequent(words: list[str], counts: np.ndarray, size: int) -> Vocabulary:
    """Returns the vocabulary of the `size` most frequent words.

    Equally frequent words are in alphabetical order. counts: int64 [len(words)].
    """
    order = sorted(range(len(words)), key=lambda number: (-counts[number], words[number]))
    return Vocabulary(words[number] for number in order[:size])


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a file of `Vocabulary.write`. InputError for any other file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the vocabulary {path}: {error}; give a run's {FILE}") from error
    if lines[0] != UNKNOWN or lines[-1] != "" or len(set(lines)) < len(lines):
        raise InputError(
            f"{path} is no vocabulary: it must have {UNKNOWN} first and then different words, one a line; give a run's"
            f" {FILE}"
        )
    return Vocabulary(lines[1:-1])
