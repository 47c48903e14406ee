"""A JSON file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from moco.errors import InputError
from moco.run.files import write_json


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
