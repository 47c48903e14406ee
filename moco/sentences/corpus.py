"""Stores text as word ids, in files of the run's folder."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from moco.errors import InputError
from moco.run.files import write_file, write_json
from moco.sentences.text import find_files, read_text, split_sentences, words
from moco.sentences.vocabulary import FILE, Vocabulary, most_frequent, read_vocabulary

FOLDER = "text"  # in the run's folder
_TOKENS = "tokens.npy"
_STARTS = "starts.npy"
_ABOUT = "about.json"


@dataclass
class Corpus:
    """Holds sentences as word ids.

    Sentence i is tokens[starts[i]:starts[i + 1]]. tokens: int32 ids. starts: int64.
    """

    tokens: np.ndarray
    starts: np.ndarray
    digest: str = ""  # of the text and of how it was read, not of the vocabulary
    cut: int = 0  # sentences that were longer than the longest allowed

    def __len__(self) -> int:
        return len(self.starts) - 1

    def words(self, start: int, stop: int) -> int:
        """Counts the words of the sentences start … stop - 1."""
        return int(self.starts[stop] - self.starts[start])

    def part(self, start: int, stop: int) -> Corpus:
        """Returns the sentences start … stop - 1."""
        return Corpus(self.tokens, self.starts[start : stop + 1], self.digest)

    def batch(self, rows: np.ndarray, device: torch.device) -> PackedSequence:
        """Returns the sentences `rows` (int64 [n]) as a packed sequence of ids."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        place = self.starts[rows][:, None] + np.arange(lengths.max())
        padded = self.tokens[np.minimum(place, self.starts[rows + 1][:, None] - 1)]
        packed = pack_padded_sequence(
            torch.from_numpy(padded.astype(np.int64)), torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
        )
        if device.type == "cpu":
            return packed
        # from pinned memory, so the host does not wait
        return packed.pin_memory().to(device, non_blocking=True)  # type: ignore[arg-type]


def from_sentences(sentences: Iterable[Sequence[str]], vocabulary: Vocabulary, longest: int) -> Corpus:
    """Makes a corpus in memory from tokenised sentences.

    A sentence without words becomes a single unknown word.
    """
    ids = [vocabulary.ids(sentence[:longest]) or [0] for sentence in sentences]
    starts = np.concatenate([[0], np.cumsum([len(sentence) for sentence in ids])]).astype(np.int64)
    return Corpus(np.array([word for sentence in ids for word in sentence], dtype=np.int32), starts)


def read_sentences(files: Iterable[Path], encoding: str, layout: str) -> Iterable[list[str]]:
    """Yields the words of every sentence of the files."""
    for path in files:
        for sentence in split_sentences(read_text(path, encoding), layout):
            yield words(sentence)


def prepare(
    texts: Sequence[str],
    folder: Path,
    *,
    encoding: str,
    layout: str,
    longest: int,
    size: int,
    vocabulary: Vocabulary | None,
    resumed: str | None = None,
) -> None:
    """Writes corpus and vocabulary into the run's folder, unless they are there.

    Call it on rank 0, under the lock. vocabulary None: the `size` most frequent words of the text. Memory: about 6
    bytes a word plus the largest file. resumed: the digest of the resumed run's text. InputError for another text,
    before anything is written.
    """
    files = find_files(texts)
    digest = _digest(files, {"encoding": encoding, "layout": layout, "longest": longest})
    if resumed not in (None, digest):
        raise InputError(
            f"the run in {folder} was trained on another text, or on this text with another --encoding, --layout or"
            " --longest; pass the same, or start a new run in another --output-dir"
        )
    place = folder / FOLDER
    if _is_there(place, digest, size, vocabulary):
        return
    corpus, chosen = _read(files, encoding, layout, longest, size, vocabulary)
    place.mkdir(parents=True, exist_ok=True)
    (place / _ABOUT).unlink(missing_ok=True)  # it is wrong as soon as the first array is replaced
    for name, values in ((_TOKENS, corpus.tokens), (_STARTS, corpus.starts)):
        write_file(place / name, lambda file, values=values: np.save(file, values))  # type: ignore[misc]
    chosen.write(folder / FILE)
    about = {"digest": digest, "cut": corpus.cut, "vocabulary": chosen.digest}
    write_json(place / _ABOUT, about | ({} if vocabulary else {"size": size}))


def load(folder: Path) -> Corpus:
    """Maps the corpus of `prepare` into memory. InputError if there is none."""
    place = folder / FOLDER
    try:
        about = json.loads((place / _ABOUT).read_text())
        tokens, starts = (np.load(place / name, mmap_mode="r") for name in (_TOKENS, _STARTS))
    except (OSError, ValueError) as error:
        raise InputError(f"{place} does not hold the text of a run ({error}); train again in this folder") from error
    return Corpus(tokens, starts, about["digest"], about["cut"])


def _digest(files: list[Path], how: dict[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    for path in files:
        try:
            with open(path, "rb") as file:
                one = hashlib.sha256()
                while block := file.read(1 << 20):
                    one.update(block)
                total.update(one.digest())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return total.hexdigest()


def _is_there(place: Path, digest: str, size: int, vocabulary: Vocabulary | None) -> bool:
    try:
        about = json.loads((place / _ABOUT).read_text())
        fits = about["vocabulary"] == vocabulary.digest if vocabulary else about.get("size") == size
        return fits and about["digest"] == digest and read_vocabulary(place.parent / FILE).digest == about["vocabulary"]
    except (OSError, ValueError, KeyError, InputError):
        return False


def _read(
    files: list[Path], encoding: str, layout: str, longest: int, size: int, vocabulary: Vocabulary | None
) -> tuple[Corpus, Vocabulary]:
    """Reads the text in one pass.

    Words get ids in the order of appearance. At the end the vocabulary's ids replace them.
    """
    seen: defaultdict[str, int] = defaultdict()
    seen.default_factory = seen.__len__
    tokens = array("i")
    lengths = array("i")
    cut = 0
    for sentence in read_sentences(files, encoding, layout):
        kept = sentence[:longest]
        cut += len(kept) < len(sentence)
        tokens.extend([seen[word] for word in kept])
        lengths.append(len(kept))
    first_ids = np.frombuffer(tokens, dtype=np.int32)
    if vocabulary is None:
        vocabulary = most_frequent(list(seen), np.bincount(first_ids, minlength=len(seen)), size)
    final_ids = np.array(vocabulary.ids(seen), dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, dtype=np.int32), dtype=np.int64)])
    return Corpus(final_ids[first_ids], starts, cut=cut), vocabulary
