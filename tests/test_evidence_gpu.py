"""The stages for a GPU, rehearsed on the CPU: archives, an interrupted study that goes on, what is written."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import evidence_gpu
from moco.errors import InputError


def stage(folder: Path, name: str, *more: str) -> int:
    page = folder / "page.md"
    if not page.exists():
        page.write_text("<!-- gpu -->\n<!-- end -->\n")
    words = ["--rehearse", "--stage", name, *more]
    words += ["--data", str(folder / "archives"), "--output-dir", str(folder / "out")]
    words += ["--results", str(folder / "results"), "--page", str(page)]
    return evidence_gpu.main(words)


def make_archives(folder: Path) -> None:
    """Two classes of noise: CIFAR-10's training images in two zips, and the validation images in a tar."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = {}
    for split, count in (("train", 32), ("val", 8)):
        for name in ("cat", "dog"):
            for i in range(count):
                path = folder.parent / f"{split}-{name}-{i}.png"
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
                images[f"{split}/{name}/{i}.png"] = path
    training = [name for name in images if name.startswith("train")]
    for part, names in (("a", training[::2]), ("b", training[1::2])):
        with zipfile.ZipFile(folder / f"cifar10-train-{part}.zip", "w") as file:
            for name in names:
                file.write(images[name], name)
    with tarfile.open(folder / "cifar10-val.tar", "w") as file:
        for name in images:
            if name.startswith("val"):
                file.add(images[name], name)


def result(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / "results" / f"{name}.json").read_text()))


def test_a_study_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="STAGE=data"):
        stage(tmp_path, "cifar10")
    make_archives(tmp_path / "archives")
    assert stage(tmp_path, "data") == 0
    assert stage(tmp_path, "cifar10", "--minutes", "0") == 0
    assert not result(tmp_path, "cifar10")["finished"]
    assert stage(tmp_path, "cifar10") == 0
    found = result(tmp_path, "cifar10")
    assert (found["finished"], found["epochs"], list(found["knn_top1"])) == (True, 2, ["0", "1"])
    assert "Not measured." in (tmp_path / "page.md").read_text()  # a rehearsal is no result


def test_every_study_can_be_typed() -> None:
    from moco.pretrain.options import parse_pretrain

    for study in evidence_gpu.STUDIES.values():
        options = parse_pretrain([*study.words.split(), "photos"])
        assert (options.epochs, options.amp, options.arch.startswith("resnet18")) == (200, "bf16", True)


def test_the_tests_and_benchmarks_of_a_gpu_can_be_started(tmp_path: Path) -> None:
    code = stage(tmp_path, "tests")
    found = result(tmp_path, "tests")
    assert (code, found["tests"]["code"], found["bench-gpu"]["code"]) == (0, 0, 0), found


def test_without_a_gpu_a_real_stage_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no GPU"):
        evidence_gpu.main(["--stage", "tests"])


@pytest.mark.parametrize("name", ["photos.zip", "cifar10-train-a.zip"])
def test_what_is_no_archive_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / name).write_bytes(b"half of a file")
    with pytest.raises(InputError, match=name):
        stage(tmp_path, "data")


def test_results_become_rows(tmp_path: Path) -> None:
    knn = {"9": 61.0, "19": 70.25}
    one = {"rehearsal": False, "knn_top1": knn, "published": "82.6", "machine": {}, "commit": "abc"}
    (tmp_path / "cifar10.json").write_text(json.dumps(one))
    assert evidence_gpu.table(tmp_path)[-1] == "| cifar10 | 20 | 70.2 | 82.6 |  | abc |"
