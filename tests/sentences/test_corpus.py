"""Text as ids: the vocabulary, cutting, keeping and reading back, and batches without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_packed_sequence

from moco.errors import InputError
from moco.sentences import corpus
from moco.sentences.vocabulary import FILE, Vocabulary, most_frequent, read_vocabulary

CPU = torch.device("cpu")


def prepare(text: Path, folder: Path, **more: Any) -> corpus.Corpus:
    settings = {"encoding": "auto", "layout": "lines", "longest": 5, "size": 3, "vocabulary": None}
    corpus.prepare([str(text)], folder, **(settings | more))
    return corpus.load(folder)


def rows(text: corpus.Corpus) -> list[list[int]]:
    return [text.tokens[a:b].tolist() for a, b in zip(text.starts[:-1], text.starts[1:], strict=True)]


def test_the_most_frequent_words_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("b a c\nThe a b a\nd\n")
    text = prepare(tmp_path / "a.txt", tmp_path / "run")
    assert read_vocabulary(tmp_path / "run" / FILE).words == ["<unk>", "a", "b", "The"]  # of the rare ones, by alphabet
    assert rows(text) == [[2, 1, 0], [3, 1, 2, 1], [0]]
    assert most_frequent(["x", "y"], np.array([1, 2]), 5).words == ["<unk>", "y", "x"]


def test_a_sentence_of_ten_thousand_words_is_cut_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\n" + "c " * 10_000 + "\nd e f g h\n")
    text = prepare(tmp_path / "a.txt", tmp_path / "run")
    assert np.diff(text.starts).tolist() == [2, 5, 5] and text.cut == 1


def test_ids_are_read_again_only_when_text_or_settings_changed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\nc d\n")
    first = prepare(tmp_path / "a.txt", tmp_path / "run")
    kept = (tmp_path / "run/text/tokens.npy").stat().st_ino
    assert prepare(tmp_path / "a.txt", tmp_path / "run").digest == first.digest
    of_run = read_vocabulary(tmp_path / "run" / FILE)
    assert prepare(tmp_path / "a.txt", tmp_path / "run", vocabulary=of_run).digest == first.digest
    assert (tmp_path / "run/text/tokens.npy").stat().st_ino == kept
    assert rows(prepare(tmp_path / "a.txt", tmp_path / "run", size=1))[0] == [1, 0]
    assert prepare(tmp_path / "a.txt", tmp_path / "run", longest=1).digest != first.digest
    (tmp_path / "a.txt").write_text("a b\nc e\n")
    assert prepare(tmp_path / "a.txt", tmp_path / "run").digest != first.digest


def test_a_given_vocabulary_decides(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\nc d\n")
    assert rows(prepare(tmp_path / "a.txt", tmp_path / "run", vocabulary=Vocabulary(["d", "a"]))) == [[2, 0], [0, 1]]
    assert read_vocabulary(tmp_path / "run" / FILE).words == ["<unk>", "d", "a"]


@pytest.mark.parametrize("content", ["", "a\nb\n", "<unk>\na\na\n", "<unk>\na"])
def test_another_file_is_no_vocabulary(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match="is no vocabulary"):
        read_vocabulary(tmp_path / FILE)


def test_batches_hold_the_sentences_in_order_and_nothing_else() -> None:
    text = corpus.from_sentences([["a"], ["a", "b", "c"], [], ["c", "b"]], Vocabulary("abc"), longest=3)
    packed = text.batch(np.array([3, 0, 1, 2]), CPU)
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    assert [row[:n].tolist() for row, n in zip(padded, lengths, strict=True)] == [[3, 2], [1], [1, 2, 3], [0]]
    assert len(packed.data) == 7, "no padding"
    assert text.part(1, 3).batch(np.array([0]), CPU).data.tolist() == [1, 2, 3] and text.words(1, 4) == 6
