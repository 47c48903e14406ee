"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO

import pytest

from moco.errors import InputError
from moco.run.files import write_file, write_json, write_text


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "result.json"
    write_json(path, {"top1": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"top1": math.nan})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*result\.json: No space left on device"):
        write_json(path, {"top1": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"top1": 1}
    write_json(path, {"top1": 3})
    assert json.loads(path.read_text()) == {"top1": 3}
    assert os.listdir(path.parent) == ["result.json"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")

    def half(file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        write_file(tmp_path / "old", half)
    assert (tmp_path / "old").read_text() == "old" and os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("path", ["file/below", "folder", "x" * 300])
def test_a_path_that_cannot_be_written_is_one_sentence(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*; make room or choose another place"):
        write_text(tmp_path / path, "text")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_synced_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def spy_replace(source: str, target: str) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_text(tmp_path / "text", "ä")
    assert calls == ["file", "rename", "folder"]
    assert (tmp_path / "text").read_bytes() == "ä".encode()
