"""Data sets through the library `datasets`: parquet files and WebDataset tars give what a folder gives."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data.datasets import has_split, open_split
from moco.data.decode import BadImage
from moco.data.loader import Loader
from moco.data.sampler import Sampler
from moco.data.source import Source
from moco.errors import InputError
from moco.run.options import DataOptions, check_data

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="pip install datasets")
SPLITS = {"train": range(8), "test": range(8, 11)}
CLASSES = ["ant", "bee"]


def picture(number: int) -> bytes:
    """A PNG of its own size; odd ones are bees."""
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images as class folders, as parquet files of three styles, and as tars. Classes are in order there."""
    import pyarrow as pa
    from pyarrow import parquet

    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    import datasets

    datasets.config.HF_DATASETS_CACHE = Path(os.environ["HF_DATASETS_CACHE"])
    root = tmp_path_factory.mktemp("data")
    names = ("folder", "typed", "plain", "structs", "tars")
    for name in names:
        (root / name).mkdir()
    for split, numbers in SPLITS.items():
        order = sorted(numbers, key=lambda number: (number % 2, number))
        pictures, labels = [picture(number) for number in order], [number % 2 for number in order]
        for number, data, label in zip(order, pictures, labels, strict=True):
            place = root / "folder" / split.replace("test", "val") / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:04d}.png").write_bytes(data)
        structs = [{"bytes": data, "path": None} for data in pictures]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
        typed = datasets.Dataset.from_dict({"image": structs, "label": labels}, features)
        typed.to_parquet(root / "typed" / f"{split}-00000-of-00001.parquet")
        words = [CLASSES[label] for label in labels]
        for name, images in (("plain", pictures), ("structs", structs)):
            parquet.write_table(pa.table({"photo": images, "class": words}), root / name / f"{split}-0.parquet")
        with tarfile.open(root / "tars" / f"{split}-0000.tar", "w") as tar:
            for position, (data, label) in enumerate(zip(pictures, labels, strict=True)):
                for suffix, content in (("png", data), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{position:06d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return {name: root / name for name in names}


def batches(source: Source, workers: int) -> list[torch.Tensor]:
    sampler = Sampler(len(source), 4, 3, rank=0, world_size=1)
    loader = Loader(source, sampler, size=16, scale=(0.2, 1.0), ratio=(0.75, 1.33), workers=workers,
                    device=torch.device("cpu"), seed=3)  # fmt: skip
    return [batch.crops.clone() for batch in loader.epoch(1)]


@pytest.mark.parametrize("kind", ["typed", "plain", "structs", "tars"])
def test_the_same_crops_as_from_a_folder(kind: str, folders: dict[str, Path]) -> None:
    """Labels, sizes, crops of two views, by any number of threads."""
    dataset = f"hf:{folders[kind]}"
    expected, found = open_split(str(folders["folder"])), open_split(None, dataset)
    assert found.labels.tolist() == expected.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert found.classes == (["0", "1"] if kind == "tars" else CLASSES)
    assert [found.size(i) for i in range(8)] == [expected.size(i) for i in range(8)]
    wanted = batches(expected, 1)
    assert len(wanted) == 2
    for workers in (1, 3):
        crops = batches(found, workers)
        assert all(torch.equal(a, b) for a, b in zip(crops, wanted, strict=True))
    assert has_split(None, dataset, "val")
    assert open_split(None, dataset, "val").labels.tolist() == [0, 0, 1]


def test_a_named_split_is_trained_on(folders: dict[str, Path]) -> None:
    dataset = f"hf:{folders['typed']}:test"
    assert len(open_split(None, dataset)) == 3
    assert not has_split(None, dataset, "val")  # the one that is there is trained on
    with pytest.raises(InputError, match="no split nope, only train, test: name one"):
        open_split(None, f"hf:{folders['typed']}:nope")


def opened(options: DataOptions) -> Source:
    check_data(options)
    return options.open("train")


def refusal(dataset: str, data: str | None = None, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        opened(DataOptions(data, dataset, list(words)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_wrong_is_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = f"hf:{folders['plain']}"
    assert "names no data set" in refusal("hf:")
    assert "is not read with --dataset" in refusal(plain, "/data")
    assert "takes image=COLUMN and label=COLUMN" in refusal(plain, None, "size=3")
    assert "no column picture, only photo, class" in refusal(plain, None, "image=picture")
    assert "no column kind" in refusal(plain, None, "label=kind")
    assert "holds no numbers or names" in refusal(plain, None, "label=photo")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 is not enough")
    assert "cannot be loaded" in refusal(f"hf:{tmp_path}")


def test_a_damaged_image_is_a_bad_image(tmp_path: Path, folders: dict[str, Path]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"image": [picture(1), b"no picture", None], "label": [0, 1, 1]})
    parquet.write_table(table, tmp_path / "train.parquet")
    source = open_split(None, f"hf:{tmp_path}")
    assert source.decode(0).shape == (21, 24, 3)
    for bad in (1, 2):
        with pytest.raises(BadImage):
            source.decode(bad)
    assert source.name(1).endswith("train[1]")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hf:some/name").endswith("pip install datasets")


def test_a_run_trains_and_resumes_on_it(folders: dict[str, Path], tmp_path: Path) -> None:
    words = ["-a", "smallcnn", "--moco-k", "8", "--moco-dim", "8", "-b", "4", "--image-size", "32"]
    words += ["--recipe", "cifar", "--eval-freq", "0", "--seed", "1"]
    output = ["--output-dir", str(tmp_path / "run")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for more in (["--epochs", "1"], ["--epochs", "2", "--resume", "auto"]):
        command = [sys.executable, "main_moco.py", "--dataset", f"hf:{folders['tars']}", *words, *output, *more]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"epoch {more[1]}  epoch  loss" in done.stdout
