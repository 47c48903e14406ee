"""Files, encodings, sentences and words."""

from __future__ import annotations

from pathlib import Path

import pytest

from moco.errors import InputError
from moco.sentences.text import find_files, is_wrapped, lines_of, read_text, split_sentences, words

WRAPPED = """The schoolmaster was leaving the village, and
everybody seemed sorry. The miller lent him
the cart.

"Sorry I am going, Jude?" asked
the latter. It was true, said
Mr. Fawley.
"""


def test_paragraphs_are_split_into_sentences() -> None:
    paragraph = 'Mr. Smith went to St. Paul. "What is it?" he said. It cost 3.5 pounds.'
    found = [sentence.strip() for sentence in split_sentences(paragraph, "paragraphs")]
    assert found == ["Mr. Smith went to St. Paul.", '"What is it?" he said.', "It cost 3.5 pounds."]


def test_a_sentence_a_line_is_kept_as_it_is() -> None:
    text = "one . two .\n\n* * *\nthree\r\nfour\rfive"
    assert list(split_sentences(text, "lines")) == ["one . two .", "three", "four", "five"]


def test_broken_lines_are_joined_until_a_blank_one() -> None:
    found = [sentence.strip() for sentence in split_sentences(WRAPPED)]
    assert found[:2] == [
        "The schoolmaster was leaving the village, and everybody seemed sorry.",
        "The miller lent him the cart.",
    ]
    assert found[-1] == "It was true, said Mr. Fawley."
    assert is_wrapped(lines_of(WRAPPED)) and not is_wrapped(["A paragraph. Of two.", "Another one."])
    assert [s.strip() for s in split_sentences("A paragraph. Of two.\nAnother one.")][1] == "Of two."


def test_words_keep_their_case_and_split_marks() -> None:
    assert words("Don’t go -- it's 3.5 _miles_ ... “no”!") == [
        "Don", "'t", "go", "--", "it", "'s", "3.5", "miles", "...", '"', "no", '"', "!"
    ]  # fmt: skip
    assert words("cafe\u0301") == ["caf\u00e9"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_found(encoding: str, tmp_path: Path) -> None:
    text = "déjà vu – naïve…\nsecond line\n"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read_text(tmp_path / "a.txt") == text


def test_latin_1_text_keeps_its_number_of_lines(tmp_path: Path) -> None:
    """U+0085 is what an ellipsis of Windows-1252 becomes in Latin-1, and a line's end for str.splitlines."""
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\x85 and\nthe rest")
    assert lines_of(read_text(tmp_path / "a.txt")) == ["café… and", "the rest"]
    assert len(lines_of(read_text(tmp_path / "a.txt", "latin-1"))) == 2


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"", "auto", "is empty; leave it out"),
        (b" \n\n", "auto", "is empty; leave it out"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "auto", "is a binary file, not plain text"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "latin-1", "is a binary file, not plain text"),
        (b"caf\xe9 \x81", "auto", "is not UTF-8 or Windows-1252 (byte 0xe9 at 3)"),
        (b"caf\xe9 noir", "utf-8", "is not utf-8 (byte 0xe9 at 3); pass its --encoding"),
        (b"coffee", "utf-9", "unknown --encoding utf-9"),
    ],
)
def test_files_that_are_no_text(content: bytes, encoding: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_text(tmp_path / "a.txt", encoding)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_folders_give_their_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in find_files([tmp_path])] == ["a.txt", "b.txt"]
    assert [path.name for path in find_files([tmp_path / "c.md", tmp_path])] == ["c.md", "a.txt", "b.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.txt file"):
        find_files([tmp_path / "empty"])
    with pytest.raises(InputError, match="there is no file or folder"):
        find_files([tmp_path / "gone"])
